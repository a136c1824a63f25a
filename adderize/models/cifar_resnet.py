"""The CIFAR ResNets: three stages of 16, 32 and 64 filters on 32x32 images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adderize.errors import AdderizeError


class PadShortcut(nn.Module):
    """Option A of He et al. (2016): every second pixel, new channels filled with zeros.

    Shape:
        (N, C, H, W) -> (N, 2 C, ceil(H / 2), ceil(W / 2)).
    """

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut around them."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for CIFAR (He et al., CVPR 2016, section 4.2), as the AdderNet authors train it.

    Layer names are those of the published checkpoints: the AdderNet authors' networks have
    ``shortcut="B", logits_norm=True`` (a 1x1 convolution ``fc`` and batch norm ``bn2`` on the
    logits), the common convolutional ones ``shortcut="A", logits_norm=False`` (``linear``).

    Args:
        depth: 6 n + 2, for n blocks in each stage.
        num_classes: width of the logits.
        shortcut: where the shape changes, ``"A"`` subsamples and pads with zeros, ``"B"`` is a 1x1
            convolution with batch norm.
        logits_norm: batch norm on the logits after a 1x1 convolution, instead of a linear layer.

    Shape:
        (N, 3, 32, 32) -> (N, num_classes), float32.

    Raises:
        AdderizeError: a depth or a shortcut that does not exist.
    """

    input_size = (3, 32, 32)

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        *,
        shortcut: str = "B",
        logits_norm: bool = True,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise AdderizeError(f"depth is {depth}; expected 6 n + 2: 20, 32, 44, 56, ...")
        if shortcut not in ("A", "B"):
            raise AdderizeError(f"shortcut is {shortcut!r}; expected 'A' or 'B'")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, shortcut)
        self.layer2 = _stage(16, 32, blocks, shortcut)
        self.layer3 = _stage(32, 64, blocks, shortcut)
        self.logits_norm = logits_norm
        if logits_norm:
            self.fc = nn.Conv2d(64, num_classes, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(num_classes)
        else:
            self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        logits: Tensor = self.bn2(self.fc(x)) if self.logits_norm else self.linear(x.flatten(1))
        return logits.flatten(1)


def _stage(in_channels: int, channels: int, blocks: int, shortcut: str) -> nn.Sequential:
    stride = channels // in_channels
    downsample: nn.Module | None = None
    if stride > 1 and shortcut == "A":
        downsample = PadShortcut()
    elif stride > 1:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = BasicBlock(in_channels, channels, stride, downsample)
    return nn.Sequential(
        first, *(BasicBlock(channels, channels, 1, None) for _ in range(1, blocks))
    )


def resnet20(num_classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet-20 for CIFAR; options as in :class:`CifarResNet`."""
    return CifarResNet(20, num_classes, **options)


def resnet32(num_classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet-32 for CIFAR; options as in :class:`CifarResNet`."""
    return CifarResNet(32, num_classes, **options)


def resnet44(num_classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet-44 for CIFAR; options as in :class:`CifarResNet`."""
    return CifarResNet(44, num_classes, **options)


def resnet56(num_classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet-56 for CIFAR; options as in :class:`CifarResNet`."""
    return CifarResNet(56, num_classes, **options)
