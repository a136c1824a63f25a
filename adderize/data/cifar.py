"""CIFAR-10 and CIFAR-100 from whatever they are stored in, as tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adderize.data.image_sets import Dataset, ImageSet, checked, stacked
from adderize.data.parquet import parquet_files, read_parquet
from adderize.errors import AdderizeError

FAKE, TIMM = "fake", "timm:"
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
CLASSES = {"cifar10": 10, "cifar100": 100}
_Splits = tuple[ImageSet, ImageSet]


def load_cifar(name: str, source: str | None) -> Dataset:
    """CIFAR-10 or CIFAR-100.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        source: a folder, or a subfolder `name` in it, with parquet files of the Hugging Face schema
            (``train*.parquet``, ``test*.parquet``), torchvision's files
            (``cifar-10-batches-py/...``) or class folders of images (``train/CLASS/...``,
            ``test/CLASS/...``); ``"timm:NAME"`` for a data set of timm's ``create_dataset``;
            ``"fake"`` for small random images with a learnable pattern; None for
            ``$ADDERIZE_DATA``, or else torchvision's download into ``./data``.

    Raises:
        AdderizeError: the data is missing, corrupt or of another number of classes.
    """
    classes = CLASSES[name]
    if source == FAKE:
        splits, kind = _fake(classes), "fake images"
    elif source is not None and source.startswith(TIMM):
        splits, kind = _from_timm(source.removeprefix(TIMM)), source
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
        "class folders": _from_class_folders,
    }
    for folder in (Path(source) / name, Path(source)):
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
    files = {split: parquet_files(folder, split) for split in ("train", "test")}
    if not any(files.values()):
        return None
    label = "fine_label" if name == "cifar100" else "label"
    for split, found in files.items():
        if not found:
            raise AdderizeError(f"no {split}*.parquet in {folder}, only the other split")
    train, test = (
        ImageSet(*map(torch.cat, zip(*(read_parquet(f, label=label) for f in found), strict=True)))
        for found in files.values()
    )
    return train, test


def _torchvision_class(name: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    return CIFAR10 if name == "cifar10" else CIFAR100


def _from_torchvision(name: str, folder: Path) -> _Splits | None:
    found = (folder / _torchvision_class(name).base_folder).is_dir()
    return _read_torchvision(name, folder) if found else None


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
        ImageSet(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets))
        for s in sets
    )
    return train, test


def _from_class_folders(folder: Path) -> _Splits | None:
    from torchvision.datasets import ImageFolder

    if not all((folder / split).is_dir() for split in ("train", "test")):
        return None
    try:
        sets = [ImageFolder(str(folder / split)) for split in ("train", "test")]
    except (OSError, FileNotFoundError) as error:
        raise AdderizeError(f"cannot read class folders in {folder}: {error}") from error
    if sets[0].classes != sets[1].classes:
        raise AdderizeError(f"{folder}/train and {folder}/test have different class folders")
    train, test = (_decoded(s, str(folder)) for s in sets)
    return train, test


def _from_timm(name: str) -> _Splits:
    from timm.data.dataset_factory import create_dataset

    root = os.environ.get("ADDERIZE_DATA", "data")
    try:
        sets = [
            create_dataset(
                name, root=root, split=split, is_training=split == "train", download=True
            )
            for split in ("train", "validation")
        ]
    except Exception as error:
        raise AdderizeError(f"timm cannot create the data set {name!r}: {error}") from error
    train, test = (_decoded(s, f"timm's {name}") for s in sets)
    return train, test


def _decoded(pairs: Iterable[tuple[Any, int]], where: str) -> ImageSet:
    images, labels = [], []
    try:
        for image, label in pairs:
            images.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
            labels.append(int(label))
    except (OSError, SyntaxError, ValueError) as error:
        raise AdderizeError(f"image {len(images)} of {where} is corrupt: {error}") from error
    return ImageSet(stacked(images, where), torch.tensor(labels))


def _fake(classes: int) -> _Splits:
    """Class c is brighter in a 4x4 tile of its own, in a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (4 * max(classes, 64), 2 * max(classes, 64)):
        labels = torch.arange(count) % classes
        images = torch.randint(0, 128, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            tile, colour = divmod(label, 3)
            row, column = divmod(tile, 6)
            image[colour, 4 + 4 * row : 8 + 4 * row, 4 + 4 * column : 8 + 4 * column] += 127
        splits.append(ImageSet(images, labels))
    return splits[0], splits[1]
