"""Convolutional networks of the AdderNet paper; `adderize()` turns them into adder networks,
`binarize()` into binary ones.

Each name is a plain callable that returns a freshly initialised module, so that every command
takes it as `adderize.models:NAME`.
"""

from adderize.models.cifar_resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56
from adderize.models.lenet import LeNet5BN, lenet5_bn
from adderize.models.lenet_plus_plus import LeNetPlusPlus, lenet_plus_plus
from adderize.models.micro import MicroCNN, micro_cnn
from adderize.models.vgg import VGGSmall, vgg_small

__all__ = [
    "CifarResNet",
    "LeNet5BN",
    "LeNetPlusPlus",
    "MicroCNN",
    "VGGSmall",
    "lenet5_bn",
    "lenet_plus_plus",
    "micro_cnn",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "vgg_small",
]
