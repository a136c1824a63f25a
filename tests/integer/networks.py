"""Networks of many kinds of layers, raw images, and the 8-bit networks that become integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import adderize, recalibrate
from adderize.integer import IntegerNetwork
from adderize.models import lenet5_bn, resnet20
from adderize.quantize import quantize

GREY: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,)}
COLOUR: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


def images(count: int, size: tuple[int, ...]) -> Tensor:
    """Smooth random bytes."""
    channels, height, width = size
    coarse = torch.rand(count, channels, max(height // 4, 1), max(width // 4, 1))
    return (F.interpolate(coarse, (height, width), mode="bilinear") * 255).byte()


def normalised(raw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    mean_, std_ = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    return (raw / 255 - mean_) / std_


def eight_bit(model: nn.Module, raw: Tensor, statistics: dict[str, Any]) -> nn.Module:
    batch = normalised(raw, **statistics)
    recalibrate(model, [batch])
    return quantize(model.eval(), [batch])


def lenet(**options: bool) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    return adderize(lenet5_bn(), linear=True, **options), (1, 32, 32), GREY


def small_resnet() -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    return adderize(resnet20()), (3, 32, 32), COLOUR


class Operators(nn.Module):
    """Grouped, depthwise, dilated and padded adders; concatenation, pooling, a kept convolution."""

    input_size = (3, 24, 24)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8))
        self.grouped = nn.Sequential(
            nn.Conv2d(8, 12, 3, 1, 2, dilation=2, groups=np.int64(2), padding_mode="reflect"),
            nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.kept = nn.Conv2d(20, 8, 3, padding="same", padding_mode="replicate")
        self.last = nn.Sequential(nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.BatchNorm2d(8))
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([F.relu(self.depthwise(x)), self.grouped(x)], 1)
        x = F.max_pool2d(F.relu(self.kept(x)), 2)
        x = F.avg_pool2d(self.last(x) + x, 2)
        return self.head(x.flatten(1))


def operators() -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    return adderize(Operators(), exclude="kept"), (3, 24, 24), COLOUR


class Numbers(nn.Module):
    """A sum with a number beside other uses of the same tensor; an output read twice; an MLP."""

    input_size = (1, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.norm = nn.Linear(144, 24), nn.BatchNorm1d(24)
        self.second, self.third = nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.Linear(72, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.flat(x.flatten(1))))
        y = self.second(x)
        shifted = F.relu(y + 0.7)
        return self.head(torch.cat([shifted, y, self.third(F.relu(y)) + x], 1))


def numbers() -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    return adderize(Numbers(), linear=True), (1, 12, 12), GREY


class Segments(nn.Module):
    """A small U-Net: a class for each pixel."""

    input_size = (3, 12, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.low, self.join = (
            nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU())
            for cin, cout in ((3, 6), (6, 10), (10, 10), (16, 8))
        )
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        low = self.low(self.down(F.max_pool2d(x, 2)))
        return self.head(self.join(torch.cat([x, F.interpolate(low, x.shape[-2:])], 1)))


def segments() -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    return adderize(Segments()), (3, 12, 8), COLOUR


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...], dict[str, Any]]]] = {
    "LeNet-5-BN": lenet,
    "LeNet-5-BN, five adders": lambda: lenet(stem=True, head=True),
    "ResNet-20": small_resnet,
    "operators": operators,
    "numbers": numbers,
    "U-Net": segments,
}


def relative_error(network: IntegerNetwork, raw: Tensor, expected: Tensor) -> float:
    """How far the logits of raw images lie from the expected ones."""
    return float((network.logits(raw) - expected).norm() / expected.norm())
