"""Photographs of any size with their labels, decoded one at a time."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adderize.data.parquet import parquet_files, read_rows
from adderize.errors import AdderizeError

FAKE, TIMM = "fake", "timm:"
_VALIDATION = ("val", "validation", "test")


class Photographs(NamedTuple):
    """Pictures as they are stored, and how one is opened; worker processes get a copy.

    Attributes:
        labels: one for each picture.
        items: what `open` turns into a PIL image; it raises what PIL and the file system raise.
        names: what the pictures are called in errors.
    """

    labels: Sequence[int]
    items: Sequence[Any]
    names: Sequence[str]
    open: Callable[[Any], Any]

    def load(self, index: int) -> Any:
        """Picture `index` as a PIL image in RGB.

        Raises:
            AdderizeError: it is missing or corrupt.
        """
        try:
            return self.open(self.items[index]).convert("RGB")
        except (OSError, KeyError, TypeError, ValueError, SyntaxError) as error:
            raise AdderizeError(f"{self.names[index]} cannot be decoded: {error}") from error


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
        return _from_timm(source.removeprefix(TIMM))
    folder = Path(source or "")
    if source is None or not folder.is_dir():
        raise AdderizeError(
            f"--data is {source}; expected a folder with train/CLASS/ and val/CLASS/, with parquet "
            f"files or with class folders, {TIMM}NAME, or {FAKE}"
        )
    return _from_parquet(folder) or _from_folders(folder)


def _from_folders(folder: Path) -> Splits:
    validation = next((folder / name for name in _VALIDATION if (folder / name).is_dir()), None)
    if validation is not None and (folder / "train").is_dir():
        (train, classes), (test, others) = map(_class_folders, (folder / "train", validation))
        if classes != others:
            raise AdderizeError(f"{folder / 'train'} and {validation} have different class folders")
        return Splits(str(folder), train, test, len(classes))
    images, classes = _class_folders(folder)
    print(
        f"warning: {folder} has no train/ and val/: the same images serve for training and "
        "validation, so the accuracy says nothing about other images",
        file=sys.stderr,
    )
    return Splits(f"{folder}, validated on its training images", images, images, len(classes))


def _class_folders(folder: Path) -> tuple[Photographs, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (OSError, FileNotFoundError) as error:
        raise AdderizeError(f"no class folders with images in {folder}: {error}") from error
    paths = [path for path, _ in found.samples]
    return Photographs(found.targets, paths, paths, _open_file), found.classes


def _from_parquet(folder: Path) -> Splits | None:
    train = parquet_files(folder, "train")
    test = next(filter(None, (parquet_files(folder, split) for split in _VALIDATION)), [])
    if not train and not test:
        return None
    if not (train and test):
        raise AdderizeError(f"{folder} has parquet files of one split only")
    splits = [_parquet_rows(files) for files in (train, test)]
    classes = 1 + max(max(split.labels) for split in splits)
    return Splits(str(folder), splits[0], splits[1], classes)


def _parquet_rows(files: Sequence[Path]) -> Photographs:
    rows: list[dict[str, Any]] = []
    labels: list[int] = []
    names: list[str] = []
    for file in files:
        images, file_labels = read_rows(file)
        rows += images
        labels += file_labels
        names += [f"image {i} of {file}" for i in range(len(images))]
    if not labels or min(labels) < 0:
        raise AdderizeError(f"{files[0]} holds no images, or images without labels")
    return Photographs(labels, rows, names, _open_row)


def _from_timm(name: str) -> Splits:
    from timm.data.dataset_factory import create_dataset

    root = os.environ.get("ADDERIZE_DATA", "data")
    try:
        sets = [
            create_dataset(
                name, root=root, split=split, is_training=split == "train", download=True
            )
            for split in ("train", "validation")
        ]
        labels = [_labels(images) for images in sets]
    except Exception as error:
        raise AdderizeError(f"timm cannot create the data set {name!r}: {error}") from error
    train, test = (
        Photographs(
            found,
            [(images, index) for index in range(len(found))],
            [f"image {index} of timm's {name}" for index in range(len(found))],
            _open_timm,
        )
        for images, found in zip(sets, labels, strict=True)
    )
    return Splits(f"timm's {name}", train, test, 1 + max(map(max, labels)))


def _labels(images: Any) -> list[int]:
    """From a list of labels where the data set has one; else every image is opened once."""
    for attribute in ("targets", "labels"):
        if hasattr(images, attribute):
            return [int(label) for label in getattr(images, attribute)]
    samples = getattr(getattr(images, "reader", None), "samples", None)
    if samples is not None:
        return [int(label) for _, label in samples]
    return [int(images[index][1]) for index in range(len(images))]


def _fake(count: int) -> Photographs:
    names = [f"fake image {index}" for index in range(count)]
    return Photographs([index % 10 for index in range(count)], range(count), names, _fake_picture)


def _open_file(path: str) -> Any:
    from PIL import Image

    return Image.open(path)


def _open_row(row: dict[str, bytes]) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(row["bytes"]))


def _open_timm(item: tuple[Any, int]) -> Any:
    images, index = item
    return images[index][0]


def _fake_picture(index: int) -> Any:
    """Noise, brighter in later classes."""
    from PIL import Image

    generator = torch.Generator().manual_seed(index)
    height, width = torch.randint(40, 90, (2,), generator=generator).tolist()
    noise = torch.randint(0, 20 * (index % 10) + 40, (height, width, 3), generator=generator)
    return Image.fromarray(noise.to(torch.uint8).numpy())
