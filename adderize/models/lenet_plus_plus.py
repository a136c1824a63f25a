"""LeNet++ with batch norm, whose features are points of a plane: to be looked at."""

from __future__ import annotations

from torch import Tensor, nn


class LeNetPlusPlus(nn.Module):
    """LeNet++ (Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition,
    ECCV 2016, table 1) with batch norm and ReLU in place of its PReLU.

    Three pairs of 5x5 convolutions of 32, 64 and 128 filters, each with batch norm and ReLU, 2x2
    max pooling after each pair; ``fc1`` maps to 2 features, without an activation, and ``fc2`` to
    the logits: 80,911,124 multiply-accumulate pairs for one grey image and ten classes.

    Shape:
        (N, in_channels, 28, 28) -> (N, num_classes), float32.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_size = (in_channels, 28, 28)
        self.stage1 = _stage(in_channels, 32)
        self.stage2 = _stage(32, 64)
        self.stage3 = _stage(64, 128)
        self.fc1 = nn.Linear(128 * 3 * 3, 2)
        self.fc2 = nn.Linear(2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x)))
        x = self.fc1(x.flatten(1))
        x = self.fc2(x)
        return x


def _stage(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 5, padding=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 5, padding=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def lenet_plus_plus(num_classes: int = 10, in_channels: int = 1) -> LeNetPlusPlus:
    """LeNet++; see :class:`LeNetPlusPlus`."""
    return LeNetPlusPlus(num_classes, in_channels)
