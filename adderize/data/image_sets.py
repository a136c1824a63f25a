"""Data sets as whole tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.arguments import own_path
from adderize.data.parquet import read_rows
from adderize.data.photographs import Photographs, open_row
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError


class ImageSet(NamedTuple):
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A training and a test set.

    Attributes:
        name: of the data, for people.
        train, test: the two sets.
        mean, std: of the training images' pixels in [0, 1], per channel.
        num_classes: how many classes the labels number from 0.
    """

    name: str
    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int


def decoded(photographs: Photographs, where: str) -> ImageSet:
    """All pictures of one size.

    Raises:
        AdderizeError: a corrupt picture, or several sizes.
    """
    images = [photographs.pixels(index) for index in range(len(photographs.labels))]
    labels = torch.tensor(photographs.labels, dtype=torch.int64)
    return ImageSet(_stacked(images, where), labels)


def _stacked(images: Sequence[Tensor], where: str) -> Tensor:
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise AdderizeError(
            f"{where} holds images of several sizes, {sizes[:3]}; expected one size"
        )
    empty = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return torch.stack(list(images)) if images else empty


@on_cpu
def read_parquet(path: Path | str, limit: int | None = None, *, label: str = "label") -> ImageSet:
    """Images of one size from a parquet file of the Hugging Face schema.

    Args:
        path: a file with a column ``img`` or ``image`` of {bytes, path}, and a column of labels.
        limit: only the first images.
        label: the name of the label column.

    Raises:
        AdderizeError: the file is missing, is not parquet, or lacks a column; an image is corrupt
            or of another size.
    """
    path = own_path(path)
    rows, labels = (values[:limit] for values in read_rows(path, label))
    names = [f"image {index} of {path}" for index in range(len(rows))]
    return decoded(Photographs(labels, rows, names, open_row), str(path))


def checked(images: ImageSet, num_classes: int) -> ImageSet:
    pixels, labels = images
    if len(pixels) == 0 or len(pixels) != len(labels):
        raise AdderizeError(f"{len(pixels)} images and {len(labels)} labels")
    if pixels.dtype != torch.uint8 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise AdderizeError(f"labels must be in 0..{num_classes - 1} and pixels bytes")
    return images
