"""Small networks of every kind that a transfer has to take, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

SIDE = 10
NORMS = nn.BatchNorm1d | nn.BatchNorm2d


def images(count: int = 48, seed: int = 0) -> Tensor:
    """(count, 3, SIDE, SIDE), neighbouring pixels alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, SIDE + 2, SIDE + 2, generator=generator)
    return F.avg_pool2d(noise, 3, 1) * 3


def teacher(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Random filters and norms, with the running statistics that belong to them."""
    torch.manual_seed(seed)
    network = build()
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None
    with torch.no_grad():
        network.train()(images(64, seed=1))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


class Block(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, conv: nn.Module, channels: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Network(nn.Module):
    """A stem of 8 channels, the blocks at hand, a linear head."""

    def __init__(self, *blocks: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = Block(nn.Conv2d(3, 8, 3, padding=1), 8)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Untraceable(Network):
    """A branch on values, which torch.fx does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


class Shared(Network):
    """One block is called three times, with a size of its own in the last call."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.max_pool2d(self.blocks[0](self.blocks[0](x)), 2)
        return self.head(self.blocks[0](x).mean((2, 3)))


class Residual(nn.Module):
    """In-place additions and activations around two convolutions and a 1x1 shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.shortcut = nn.Conv2d(8, 12, 1, 2, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.shortcut(x))
        return self.relu(y)


class Perceptron(nn.Module):
    """Linear layers, the first on rows of patches, one with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(nn.Conv2d(3, 8, 3, padding=1), 8)
        self.mixing = nn.Linear(8, 16)
        self.hidden = nn.Linear(16, 20)
        self.norm = nn.BatchNorm1d(20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = F.relu(self.mixing(x)).mean(1)
        return self.head(F.relu(self.norm(self.hidden(x))))


def _conv(channels: int, width: int, kernel: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(channels, width, kernel, **options)


def plain() -> nn.Module:
    return Network(
        Block(_conv(8, 10, padding=1), 10), Block(_conv(10, 12, stride=2), 12), channels=12
    )


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "biases": lambda: Network(Block(_conv(8, 10, bias=True), 10), channels=10),
    "dilated, not square": lambda: Network(
        Block(nn.Conv2d(8, 10, (3, 1), dilation=(2, 1), padding=(1, 0)), 10), channels=10
    ),
    "grouped": lambda: Network(Block(_conv(8, 12, groups=2, padding=1), 12), channels=12),
    "depthwise": lambda: Network(
        Block(_conv(8, 16, groups=8, padding=1), 16), Block(_conv(16, 10, 1), 10), channels=10
    ),
    "reflected": lambda: Network(
        Block(_conv(8, 10, padding=1, padding_mode="reflect"), 10), channels=10
    ),
    "same": lambda: Network(Block(_conv(8, 10, 4, padding="same"), 10), channels=10),
    "timm's same": lambda: Network(Block(Conv2dSame(8, 10, 3, stride=2), 10), channels=10),
    "inserted norms": lambda: Network(
        Block(_conv(8, 10, padding=1), 10, norm=False), Block(_conv(10, 12), 12, norm=False),
        channels=12,
    ),
    "linear": Perceptron,
    "shared": lambda: Shared(Block(_conv(8, 8, padding=1), 8), channels=8),
    "residual": lambda: Network(Residual(), channels=12),
    "untraceable": lambda: Untraceable(Block(_conv(8, 10, padding=1), 10), channels=10),
}  # fmt: skip
