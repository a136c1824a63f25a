"""The networks of the AdderNet paper's tables, as plain convolutional networks, for counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adderize.models import lenet5_bn, resnet20, resnet32, vgg_small


@dataclass(frozen=True)
class Network:
    """A network and what the paper prints for it.

    Attributes:
        printed: by arithmetic (CNN, AdderNet, BNN): multiplications and additions; for BNN
            additions and XNORs.
        reason: why our count by the paper's convention differs, or agrees.
        options: of the conversion.
    """

    name: str
    build: Callable[[], nn.Module]
    input_size: tuple[int, ...]
    printed: Mapping[str, tuple[str, str]]
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    model: nn.Module = resnet18()
    return model


def resnet50_v1() -> nn.Module:
    """ResNet-50 as He et al. (2016) have it, with the stride in the first 1x1 convolution."""
    from torchvision.models import resnet50
    from torchvision.models.resnet import Bottleneck

    model: nn.Module = resnet50()
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model


def _printed(pairs: str, twice: str, *, binary: bool = True, zero: str = "0") -> Any:
    printed = {"CNN": (pairs, pairs), "AdderNet": (zero, twice)}
    return printed | {"BNN": (pairs, pairs)} if binary else printed


NETWORKS = (
    Network(
        "LeNet-5-BN",
        lenet5_bn,
        (1, 32, 32),
        _printed("435K", "870K", binary=False, zero="~0"),
        "117,600 + 240,000 (convolutions) + 48,000 + 10,080 + 840 (fully connected) = 416,520. The "
        "paper prints no layout. Three more operations for each of the 6,304 convolution outputs "
        "(a batch norm's two and a bias or a ReLU) would make 435,432.",
        {"stem": True, "head": True, "linear": True},
    ),
    Network(
        "VGG-small",
        vgg_small,
        (3, 32, 32),
        _printed("0.65G", "1.30G"),
        "607,518,720 (six convolutions) + 81,920 (classifier) = 607,600,640. The paper prints no "
        "layout. Two hidden fully connected layers of 1,024 would make 616,966,144; a seventh "
        "convolution of 512 filters on the 4x4 maps would make 645,349,376, which rounds to 0.65G.",
    ),
    Network(
        "ResNet-20",
        resnet20,
        (3, 32, 32),
        _printed("41.17M", "82.34M"),
        "40,550,400 (3x3 convolutions) + 262,144 (1x1 shortcuts) + 640 (classifier) = 40,813,184. "
        "The 0.36M that the paper has more are unexplained: batch norms (200,714), residual "
        "additions (86,016) and pooling (4,096) make 290,826 together, and the same count gives "
        "ResNet-32 to the last printed digit.",
    ),
    Network(
        "ResNet-32",
        resnet32,
        (3, 32, 32),
        _printed("69.12M", "138.24M"),
        "68,861,952 (3x3 convolutions) + 262,144 (1x1 shortcuts) + 640 (classifier) = 69,124,736. "
        "The paper doubles the rounded figure for the AdderNet.",
    ),
    Network(
        "ResNet-18",
        resnet18,
        (3, 224, 224),
        _printed("1.8G", "3.6G"),
        "1,814,073,344: agrees.",
    ),
    Network(
        "ResNet-50",
        resnet50_v1,
        (3, 224, 224),
        _printed("3.9G", "7.7G"),
        "3,857,973,248 with the stride in a block's first 1x1 convolution (He et al., 2016), as "
        "the paper's two figures have it; torchvision's network, with the stride in the 3x3 "
        "convolution, has 4,089,184,256.",
    ),
)
