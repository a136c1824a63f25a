"""ImageNet, or any other photographs with a training and a validation set."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch

from adderize.arguments import own_path
from adderize.data.photographs import (
    TIMM,
    Photographs,
    class_folder_splits,
    from_class_folders,
    parquet_splits,
    timm_splits,
)
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError

FAKE = "fake"


class Splits(NamedTuple):
    """Training and validation pictures; labels are 0 to `num_classes` - 1."""

    name: str
    train: Photographs
    test: Photographs
    num_classes: int


def load_photographs(source: str | None) -> Splits:
    """ImageNet, or any other photographs.

    Args:
        source: a folder with ``train/CLASS/...`` and ``val/CLASS/...``, with parquet files of the
            Hugging Face schema (``train*.parquet``, ``validation*.parquet``), or with class folders
            only, whose images then also serve as validation set, with a warning; ``"timm:NAME"``
            for a data set of timm's ``create_dataset``, below ``$ADDERIZE_DATA`` or ``./data``;
            ``"fake"`` for a few random images of ten classes.

    Raises:
        AdderizeError: no images there, or splits of different classes.
    """
    if source == FAKE:
        return Splits("fake photographs", _fake(80), _fake(40), 10)
    if source is not None and source.startswith(TIMM):
        name = source.removeprefix(TIMM)
        return _numbered(f"timm's {name}", *timm_splits(name))
    folder = own_path(source or "")
    if source is None or not folder.is_dir():
        raise AdderizeError(
            f"--data is {source}; expected a folder with train/CLASS/ and val/CLASS/, with parquet "
            f"files or with class folders, {TIMM}NAME, or {FAKE}"
        )
    if (stored := parquet_splits(folder)) is not None:
        return _numbered(str(folder), *stored)
    if (split := class_folder_splits(folder)) is not None:
        return Splits(str(folder), *split)
    images, classes = from_class_folders(folder)
    print(
        f"warning: {folder} has no train/ and val/: the same images serve for training and "
        "validation, so the accuracy says nothing about other images",
        file=sys.stderr,
    )
    return Splits(f"{folder}, validated on its training images", images, images, len(classes))


def _numbered(name: str, train: Photographs, test: Photographs) -> Splits:
    """As many classes as the labels' numbers tell."""
    classes = 1 + max(max(train.labels), max(test.labels))
    if classes == 1:
        raise AdderizeError(f"{name} has one class; expected several")
    return Splits(name, train, test, classes)


def _fake(count: int) -> Photographs:
    names = [f"fake image {index}" for index in range(count)]
    return Photographs([index % 10 for index in range(count)], range(count), names, _fake_picture)


@on_cpu
def _fake_picture(index: int) -> Any:
    """Noise, brighter in later classes."""
    from PIL import Image

    generator = torch.Generator().manual_seed(index)
    height, width = torch.randint(40, 90, (2,), generator=generator).tolist()
    noise = torch.randint(0, 20 * (index % 10) + 40, (height, width, 3), generator=generator)
    return Image.fromarray(noise.to(torch.uint8).numpy())
