"""CIFAR-10 and CIFAR-100 from whatever they are stored in, as tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adderize.arguments import own_path
from adderize.data.image_sets import Dataset, ImageSet, checked, decoded
from adderize.data.normalisation import CIFAR10, CIFAR100
from adderize.data.photographs import (
    TIMM,
    Photographs,
    class_folder_splits,
    parquet_splits,
    timm_splits,
)
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError

FAKE = "fake"
_STATISTICS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CLASSES = {"cifar10": 10, "cifar100": 100}
_Splits = tuple[ImageSet, ImageSet]


@on_cpu
def load_cifar(name: str, source: str | None) -> Dataset:
    """CIFAR-10 or CIFAR-100.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        source: a folder, or a subfolder `name` in it, with parquet files of the Hugging Face schema
            (``train*.parquet``, ``test*.parquet``), torchvision's files
            (``cifar-10-batches-py/...``) or class folders of images (``train/CLASS/...``,
            ``test/CLASS/...``); ``"timm:NAME"`` for a data set of timm's ``create_dataset``;
            ``"fake"`` for a few random images with a learnable pattern, ``"fake:N"`` for N training
            images; None for ``$ADDERIZE_DATA``, or else torchvision's download into ``./data``.

    Raises:
        AdderizeError: the data is missing, corrupt or of another number of classes.
    """
    classes = CLASSES[name]
    if source is not None and source.partition(":")[0] == FAKE:
        splits, kind = _fake(classes, source.partition(":")[2]), "fake images"
    elif source is not None and source.startswith(TIMM):
        splits, kind = _decoded(timm_splits(source.removeprefix(TIMM)), source), source
    else:
        splits, kind = _from_folder(name, source or os.environ.get("ADDERIZE_DATA"))
    train, test = (checked(images, classes) for images in splits)
    return Dataset(f"{name} ({kind})", train, test, *_STATISTICS[name], classes)


def _from_folder(name: str, source: str | None) -> tuple[_Splits, str]:
    if source is None:
        return _read_torchvision(name, Path("data"), download=True), "torchvision's download"
    readers: dict[str, Callable[[Path], _Splits | None]] = {
        "parquet files": lambda folder: _from_parquet(name, folder),
        "torchvision's files": lambda folder: _from_torchvision(name, folder),
        "class folders": lambda folder: _from_class_folders(name, folder),
    }
    given = own_path(source)
    for folder in (given / name, given):
        for kind, read in readers.items():
            splits = read(folder) if folder.is_dir() else None
            if splits is not None:
                return splits, kind
    raise AdderizeError(
        f"no {name} in {source}: expected train.parquet and test.parquet, torchvision's "
        f"{_torchvision_class(name).base_folder}, or train/CLASS/ and test/CLASS/ folders, in it "
        f"or in its subfolder {name}. Leave --data out to download"
    )


def _from_parquet(name: str, folder: Path) -> _Splits | None:
    found = parquet_splits(folder, "fine_label" if name == "cifar100" else "label")
    return None if found is None else _decoded(found, str(folder))


def _from_class_folders(name: str, folder: Path) -> _Splits | None:
    found = class_folder_splits(folder)
    if found is None:
        return None
    *splits, classes = found
    if classes != CLASSES[name]:
        raise AdderizeError(f"{folder} has {classes} class folders; {name} has {CLASSES[name]}")
    return _decoded((splits[0], splits[1]), str(folder))


def _decoded(splits: tuple[Photographs, Photographs], where: str) -> _Splits:
    return decoded(splits[0], where), decoded(splits[1], where)


def _torchvision_class(name: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    return CIFAR10 if name == "cifar10" else CIFAR100


def _from_torchvision(name: str, folder: Path) -> _Splits | None:
    """From the folder that holds torchvision's, or from that one itself."""
    own = _torchvision_class(name).base_folder
    root = folder.absolute().parent if folder.absolute().name == own else folder
    return _read_torchvision(name, root) if (root / own).is_dir() else None


def _read_torchvision(name: str, folder: Path, download: bool = False) -> _Splits:
    kind = _torchvision_class(name)
    try:
        sets = [kind(folder, train=train, download=download) for train in (True, False)]
    except Exception as error:
        action = "download" if download else "read"
        raise AdderizeError(
            f"cannot {action} {name} in {folder / kind.base_folder}: {error}"
        ) from error
    train, test = (
        ImageSet(
            torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(s.targets),
        )
        for s in sets
    )
    return train, test


def _fake(classes: int, number: str) -> _Splits:
    """Class c is brighter in a 4x4 tile of its own, in a colour of its own."""
    train, test = 4 * max(classes, 64), 2 * max(classes, 64)
    if number:
        if not number.isdecimal() or int(number) < 2:
            raise AdderizeError(f"{FAKE}:{number}: expected a number of images, such as fake:50000")
        train = int(number)
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (train, test):
        labels = torch.arange(count) % classes
        images = torch.randint(0, 128, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            tile, colour = divmod(label, 3)
            row, column = divmod(tile, 6)
            image[colour, 4 + 4 * row : 8 + 4 * row, 4 + 4 * column : 8 + 4 * column] += 127
        splits.append(ImageSet(images, labels))
    return splits[0], splits[1]
