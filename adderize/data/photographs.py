"""Pictures of any size with their labels, decoded one at a time, and where they are stored."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import IterableDataset

from adderize.arguments import own_path
from adderize.data.image_files import image_files, visible_folders
from adderize.data.parquet import parquet_files, read_rows
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError, listed

TIMM = "timm:"
_DEEP_MODES = ("I", "F")  # of PIL: 16 and 32 bits, floats
VALIDATION = ("val", "validation", "test")
_SPLITS = frozenset({"eval", "test", "testing", "train", "training", "valid", *VALIDATION})


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

    def load(self, index: int, mode: str = "RGB") -> Any:
        """Picture `index` as a PIL image of a mode.

        Raises:
            AdderizeError: it is missing or corrupt, or its pixels have more than 8 bits.
        """
        try:
            picture = self.open(self.items[index])
            if not picture.mode.startswith(_DEEP_MODES):  # which PIL would clip at 255
                return picture.convert(mode)
        except Exception as error:  # PIL's readers raise whatever a broken file leads them to
            raise AdderizeError(f"{self.names[index]} cannot be decoded: {error}") from error
        raise AdderizeError(
            f"{self.names[index]} has pixels of mode {picture.mode!r}; expected 8 bits a channel: "
            "convert the image, or give an array (.npy, .pt)"
        )

    @on_cpu
    def pixels(self, index: int, mode: str = "RGB") -> Tensor:
        """Picture `index` as (3, H, W) bytes; (1, H, W) for the mode ``"L"``."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        pixels: Tensor = pil_to_tensor(self.load(index, mode))
        return pixels


def from_files(paths: Sequence[str | Path], labels: Sequence[int] = ()) -> Photographs:
    return Photographs(labels, paths, [str(path) for path in paths], open_file)


def from_class_folders(folder: Path) -> tuple[Photographs, list[str]]:
    """The images in a folder for each class, and the classes.

    Raises:
        AdderizeError: no such folders or a single one, one without images, or one that is a split.
    """
    files = {path.name: image_files(path) for path in visible_folders(folder)}
    if not files:
        raise AdderizeError(f"{folder} has no class folders; expected one with images for a class")
    if splits := [name for name, found in files.items() if _is_split(folder / name, found)]:
        raise AdderizeError(
            f"{folder} has {listed(splits)} with folders of images, which would count as classes; "
            f"expected the class folders themselves, or train/ and one of {', '.join(VALIDATION)}"
        )
    if len(files) == 1:
        raise AdderizeError(
            f"{folder} has one class folder, {next(iter(files))}; expected several: "
            "name the folder that holds them"
        )
    if empty := [name for name, found in files.items() if not found]:
        raise AdderizeError(f"the class folders {listed(empty)} in {folder} have no images")
    labels = [label for label, found in enumerate(files.values()) for _ in found]
    return from_files([str(path) for found in files.values() for path in found], labels), [*files]


def _is_split(folder: Path, files: Sequence[Path]) -> bool:
    """Whether a folder is a split of a data set by its name, and holds classes, not images."""
    inside = {file.parent for file in files}
    return folder.name.lower() in _SPLITS and len(inside) > 1 and folder not in inside


def class_folder_splits(folder: Path) -> tuple[Photographs, Photographs, int] | None:
    """Pictures of ``train/`` and ``val/``, and the number of classes; None without such folders.

    Raises:
        AdderizeError: the two have different class folders.
    """
    validation = next((folder / name for name in VALIDATION if (folder / name).is_dir()), None)
    if validation is None or not (folder / "train").is_dir():
        return None
    (train, classes), (test, others) = map(from_class_folders, (folder / "train", validation))
    if classes != others:
        raise AdderizeError(f"{folder / 'train'} and {validation} have different class folders")
    return train, test, len(classes)


def parquet_splits(folder: Path, label: str = "label") -> tuple[Photographs, Photographs] | None:
    """Pictures in parquet files of the Hugging Face schema; None where the folder has none.

    Raises:
        AdderizeError: files of one split only, or without images and labels.
    """
    train, test = parquet_files(folder, "train"), parquet_files(folder, *VALIDATION)
    if not train and not test:
        return None
    if not (train and test):
        missing = "test" if train else "train"
        raise AdderizeError(f"no {missing}*.parquet in {folder}, only the other split")
    return _from_parquet(train, label), _from_parquet(test, label)


def _from_parquet(files: Sequence[Path], label: str) -> Photographs:
    rows: list[Any] = []
    labels: list[int] = []
    names: list[str] = []
    for file in files:
        images, file_labels = read_rows(file, label)
        rows += images
        labels += file_labels
        names += [f"image {i} of {file}" for i in range(len(images))]
    if not labels:
        raise AdderizeError(f"{files[0]} holds no images")
    if wrong := [value for value in labels if not isinstance(value, int) or value < 0]:
        raise AdderizeError(
            f"{files[0]} has {wrong[0]!r} in the column {label}; expected numbers of classes from 0"
        )
    return Photographs(labels, rows, names, open_row)


def timm_splits(name: str) -> tuple[Photographs, Photographs]:
    """A data set of timm's ``create_dataset``, below ``$ADDERIZE_DATA`` or ``./data``.

    Raises:
        AdderizeError: timm cannot create it, or the splits have different classes.
    """
    from timm.data.dataset_factory import create_dataset

    root = str(own_path(os.environ.get("ADDERIZE_DATA", "data")))
    splits, numbers = [], []
    for split in ("train", "validation"):
        try:
            images: Any = create_dataset(
                name, root=root, split=split, is_training=split == "train", download=True
            )
            if isinstance(images, IterableDataset):
                images = list(images)
            labels = _labels(images)
        except Exception as error:
            raise AdderizeError(f"timm cannot create the data set {name!r}: {error}") from error
        numbers.append(getattr(getattr(images, "reader", None), "class_to_idx", None))
        items = [(images, index) for index in range(len(labels))]
        names = [f"image {index} of timm's {name}" for index in range(len(labels))]
        splits.append(Photographs(labels, items, names, _open_timm))
    if numbers[0] != numbers[1]:
        raise AdderizeError(
            f"timm's data set {name!r} in {root} has other classes for training than for validation"
        )
    return splits[0], splits[1]


def _labels(images: Any) -> list[int]:
    """The labels: from a list where the data set has one; else every image is opened once."""
    for attribute in ("targets", "labels"):
        if hasattr(images, attribute):
            return [int(label) for label in getattr(images, attribute)]
    samples = getattr(getattr(images, "reader", None), "samples", None)
    if samples is not None:
        return [int(label) for _, label in samples]
    return [int(images[index][1]) for index in range(len(images))]


def open_file(path: str | Path) -> Any:
    from PIL import Image

    return Image.open(path)


def open_row(row: dict[str, bytes]) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(row["bytes"]))


def _open_timm(item: tuple[Any, int]) -> Any:
    images, index = item
    return images[index][0]
