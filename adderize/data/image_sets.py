"""Data sets as whole tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError


class ImageSet(NamedTuple):
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A training and a test set, and the mean and deviation of pixels in [0, 1] per channel."""

    name: str
    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int


def stacked(images: Sequence[Tensor], where: str) -> Tensor:
    """Images (C, H, W) of one size as (N, C, H, W).

    Raises:
        AdderizeError: several sizes.
    """
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise AdderizeError(
            f"{where} holds images of several sizes, {sizes[:3]}; expected one size"
        )
    return torch.stack(list(images)) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)


def checked(images: ImageSet, num_classes: int) -> ImageSet:
    pixels, labels = images
    if len(pixels) == 0 or len(pixels) != len(labels):
        raise AdderizeError(f"{len(pixels)} images and {len(labels)} labels")
    if pixels.dtype != torch.uint8 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise AdderizeError(f"labels must be in 0..{num_classes - 1} and pixels bytes")
    return images
