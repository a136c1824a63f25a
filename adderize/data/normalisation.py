"""Means and deviations that images are normalised with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError


class Statistics(NamedTuple):
    """Mean and deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


MNIST = Statistics((0.1307,), (0.3081,))
CIFAR10 = Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def usual_statistics(model: nn.Module, size: Sequence[int]) -> Statistics:
    """What a network's inputs are usually normalised with.

    Args:
        model: its own statement counts (timm's ``default_cfg``), if it is of so many channels.
        size: (C, H, W); else MNIST's for one channel, CIFAR-10's for 3x32x32, or ImageNet's.

    Raises:
        AdderizeError: neither one nor three channels, and no statement.
    """
    stated = getattr(model, "default_cfg", None)
    if isinstance(stated, dict) and "mean" in stated and "std" in stated:
        own = Statistics(tuple(stated["mean"]), tuple(stated["std"]))
        if len(own.mean) in (1, size[0]):
            return own
    if size[0] == 1:
        return MNIST
    if size[0] != 3:
        raise AdderizeError(f"no usual mean and deviation for {size[0]} channels: give both")
    return CIFAR10 if tuple(size[1:]) == (32, 32) else IMAGENET


def normalised(
    pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """Bytes (..., C, H, W) as float32, less the mean and divided by the deviation of [0, 1].

    Statistics that are tensors on the pixels' device spare a wait for the device.
    """
    shift, scale = (
        torch.as_tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
        for values in (mean, std)
    )
    return (pixels.to(torch.float32) / 255 - shift) / scale
