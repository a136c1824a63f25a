"""A convolutional network for a microcontroller with 2 kB of memory, for 28x28 grey images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MicroCNN(nn.Module):
    """Five small convolutions and a classifier.

    As adders with filters of 4 bits and activations of 8, its widths fit the smallest processors:
    25,377 filter values, and no two neighbouring activations are above 1,584 bytes: 784 (the
    image), 12x12x5, 6x6x20, 6x6x24, 4x4x32, 2x2x40, 10. 364,192 multiply-accumulate pairs.

    Args:
        widths: channels of the five convolutions.

    Shape:
        (N, in_channels, 28, 28) -> (N, num_classes), float32.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (5, 20, 24, 32, 40),
    ) -> None:
        super().__init__()
        self.input_size = (in_channels, 28, 28)
        first, second, third, fourth, fifth = widths
        self.stage1 = _stage(in_channels, first, 5, stride=2)
        self.stage2 = _stage(first, second, 3, stride=2, padding=1)
        self.stage3 = _stage(second, third, 3, padding=1)
        self.stage4 = _stage(third, fourth, 3)
        self.stage5 = _stage(fourth, fifth, 3)
        self.fc = nn.Linear(4 * fifth, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x)))
        x = self.stage5(self.stage4(x))
        x = self.fc(x.flatten(1))
        return x


def _stage(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def micro_cnn(
    num_classes: int = 10, in_channels: int = 1, widths: Sequence[int] = (5, 20, 24, 32, 40)
) -> MicroCNN:
    """The network for small microcontrollers; see :class:`MicroCNN`."""
    return MicroCNN(num_classes, in_channels, widths)
