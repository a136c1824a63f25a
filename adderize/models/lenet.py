"""LeNet-5 with batch norm, for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5BN(nn.Module):
    """LeNet-5-BN (LeCun et al., 1998; with batch norm as in AdderNet, CVPR 2020, section 4.1).

    Two 5x5 convolutions of 6 and 16 filters, each with batch norm, ReLU and 2x2 max pooling, then
    fully connected layers of 120, 84 and `num_classes`: 416,520 multiply-accumulate pairs for one
    grey image and ten classes. (The paper does not print the layout; it prints 435K.)

    Shape:
        (N, in_channels, 32, 32) -> (N, num_classes), float32.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_size = (in_channels, 32, 32)
        self.conv1 = nn.Conv2d(in_channels, 6, 5, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


def lenet5_bn(num_classes: int = 10, in_channels: int = 1) -> LeNet5BN:
    """LeNet-5-BN; see :class:`LeNet5BN`."""
    return LeNet5BN(num_classes, in_channels)
