"""Augmentation of whole batches, and CIFAR's: every image gets a crop and a flip of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


class Augmentation(NamedTuple):
    """What is drawn at random for each image, and what it does to the image.

    Attributes:
        draw: from a count and a generator, one row for each image.
        apply: from images (N, C, H, W) uint8 and N rows, images of the same shape and dtype.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """Random crops: (count, 3) int64 of the top and left offset, 0 to 8, and 1 for a flip."""
    offsets = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def crop_and_flip(images: Tensor, crops: Tensor) -> Tensor:
    """Each image padded with 4 zeros, cropped to its own size, and flipped (left to right).

    torchvision's ``RandomCrop`` and ``RandomHorizontalFlip`` draw once for a whole batch.

    Args:
        images: (N, C, H, W), any dtype and device. Zeros are black before a normalisation, as in
            the AdderNet authors' code and the recipes, and the mean colour behind it.
        crops: (N, 3) of :func:`draw_crops`.
    """
    count, channels, height, width = images.shape
    top, left, flip = crops.to(images.device).unbind(1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    padded = F.pad(images, (PADDING,) * 4)
    line = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
    cropped = padded.flatten(2).gather(2, line.expand(-1, channels, -1))
    return cropped.view(count, channels, height, width)


CROP_AND_FLIP = Augmentation(draw_crops, crop_and_flip)
