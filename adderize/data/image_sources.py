"""A batch of normalised images for a network to look at, from whatever they are stored in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adderize.arguments import checked_statistics, own_path
from adderize.data.image_files import image_files, is_image_file, visible_folders
from adderize.data.mnist import idx_set, read_idx
from adderize.data.normalisation import Statistics, normalised
from adderize.data.parquet import column_names, count_rows, parquet_files, read_rows
from adderize.data.photographs import VALIDATION, Photographs, from_files, open_row
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError, listed
from adderize.progress import steps
from adderize.tables import shape_text

SOURCES = (
    "an image file, a folder of images (searched through), a Hugging Face parquet file or a folder "
    "with such files, a folder with MNIST/raw, or an array (.npy, .pt)"
)
_SPLITS = {"train": ("train",), "test": VALIDATION}
_HALF_STEP = 0.13  # what float16 rounds the level 255 by, at most
_LABELS = ("label", "fine_label")


@on_cpu
def load_labelled(
    source: str | Path,
    size: Sequence[int],
    statistics: Statistics,
    *,
    limit: int = 256,
    split: str = "test",
) -> tuple[Tensor, Tensor | None]:
    """Images in evaluation form: resized on the shorter side, cropped at the centre, normalised.

    Args:
        source: an image file, a folder of image files (searched through), a parquet file of the
            Hugging Face schema (a column ``img`` or ``image``) or a folder with such files, a
            folder with ``MNIST/raw``, or an array of images (N, C, H, W), or (N, H, W) for one
            channel, in a ``.npy`` or ``.pt`` file. Floating-point arrays count as normalised and
            stay as they are.
        size: (C, H, W) of the result. Colour files become grey for C = 1.
        statistics: mean and deviation to normalise with.
        limit: so many images at most, evenly spaced over the whole source.
        split: ``"test"`` (or validation) or ``"train"``, where a source has both.

    Returns:
        the images, (N, C, H, W) float32 on the CPU, and the labels of MNIST, parquet files and
        class folders, (N,) int64; None where the source has none, or others than numbers of
        classes from 0.

    Raises:
        AdderizeError: nothing there, damaged files, images that do not fit the size.
    """
    path = own_path(source)
    if limit < 1:
        raise AdderizeError(f"limit is {limit}; expected at least one image")
    if len(size) != 3:
        raise AdderizeError(f"the input size is {tuple(size)}; images have (C, H, W)")
    mean, std = (v * size[0] if len(v) == 1 else v for v in statistics)
    mean, std = checked_statistics(mean, std, size[0])
    found = _reader(path)(path, size[0], limit, split)
    if not found.images:
        raise AdderizeError(f"{path} holds no images; expected {SOURCES}")
    stacked = torch.stack(
        [_fitted(image, size, path) for image in steps(found.images, "resizing images")]
    )
    if stacked.is_floating_point():
        _check_normalised(stacked, statistics, path)
        images = stacked.float()
    else:
        images = normalised(stacked, *statistics)
    return images, torch.tensor(found.labels, dtype=torch.int64) if found.labels else None


def class_folders(source: str | Path, split: str = "test") -> int | None:
    """How many folders number the labels of :func:`load_labelled`; None where files do."""
    path = own_path(source)
    if not path.is_dir() or _reader(path) is not _read_files:
        return None
    path, files = _image_files(path, split)
    return len(_class_folders(path, files)) or None


class _Found(NamedTuple):
    """Images (C, H, W), and a label for each of them, or none at all."""

    images: Sequence[Tensor]
    labels: Sequence[int] = ()


_Reader = Callable[[Path, int, int, str], _Found]


def _reader(path: Path) -> _Reader:
    if path.is_dir():
        if idx_set(path) is not None:
            return _read_idx
        return _read_parquet if _files_of_split(path, "test") else _read_files
    if not path.is_file():
        raise AdderizeError(f"{path} does not exist; expected {SOURCES}")
    if path.suffix == ".parquet":
        return _read_parquet
    if path.suffix in (".npy", ".pt"):
        return _read_array
    if is_image_file(path):
        return _read_files
    raise AdderizeError(f"{path} is of an unknown kind; expected {SOURCES}")


def evenly_spaced(count: int, limit: int) -> list[int]:
    """`limit` of `count` indices, or all: over the whole, since images often lie class by class."""
    number = min(count, limit)
    return [index * count // number for index in range(number)]


def _read_idx(path: Path, channels: int, limit: int, split: str) -> _Found:
    found = idx_set(path)
    assert found is not None
    pixels, labels = read_idx(*found, split)
    chosen = evenly_spaced(len(pixels), limit)
    return _Found([pixels[index] for index in chosen], labels[chosen].tolist())


def _read_array(path: Path, channels: int, limit: int, split: str) -> _Found:
    try:
        array = (
            torch.load(path, map_location="cpu", weights_only=True)
            if path.suffix == ".pt"
            else torch.from_numpy(np.load(path, allow_pickle=False))
        )
    except Exception as error:
        raise AdderizeError(f"cannot read {path} as an array: {error}") from error
    if isinstance(array, Tensor) and array.ndim == 3:
        array = array[:, None]
    if not isinstance(array, Tensor) or array.ndim != 4:
        found = tuple(array.shape) if isinstance(array, Tensor) else type(array).__name__
        raise AdderizeError(f"{path} holds {found}; expected images (N, C, H, W)")
    if array.dtype != torch.uint8 and not array.is_floating_point():
        raise AdderizeError(f"{path} holds {array.dtype}; expected bytes or normalised floats")
    array = array.detach()
    return _Found([array[index] for index in evenly_spaced(len(array), limit)])


def _check_normalised(images: Tensor, statistics: Statistics, path: Path) -> None:
    """Raise where floats are pixels: whole numbers up to 255, or steps of 1/255 up to 1.

    The latter are what a network takes whose mean is 0 and whose deviation is 1.
    """
    low, high = (float(end) for end in images.aminmax())
    if low < 0 or not 0 < high <= 255:
        return
    if high > 20 and torch.equal(images, images.round()):
        raise AdderizeError(
            f"{path} holds whole numbers up to {high:g} as {images.dtype}, which are no normalised "
            "images: save pixels as bytes (uint8)"
        )
    levels = 255 * images.double()
    plain = set(statistics.mean) == {0} and set(statistics.std) == {1}
    if high <= 1 and not plain and bool(((levels - levels.round()).abs() < _HALF_STEP).all()):
        raise AdderizeError(
            f"{path} holds pixels in [0, 1] as {images.dtype}, which are no normalised images: "
            "save them as bytes (uint8), or give mean 0 and deviation 1 if the network takes them "
            "so"
        )


def _read_files(path: Path, channels: int, limit: int, split: str) -> _Found:
    path, files = _image_files(path, split)
    chosen = [files[index] for index in evenly_spaced(len(files), limit)]
    classes = _class_folders(path, files)
    labels = [classes.index(file.parent) for file in chosen] if classes else ()
    return _Found(_pixels(from_files(chosen), channels), labels)


def _image_files(path: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of a split, and the images in it; a file is itself."""
    if not path.is_dir():
        return path, [path]
    path = next((path / name for name in _SPLITS[split] if (path / name).is_dir()), path)
    return path, image_files(path)


def _class_folders(root: Path, files: Sequence[Path]) -> list[Path]:
    """The folders in `root`, where all files lie in several of them; else none.

    Those without images count too: the classes behind them keep their numbers.
    """
    used = {file.parent for file in files}
    if len(used) < 2 or any(folder.parent != root for folder in used):
        return []
    return visible_folders(root)


def _read_parquet(path: Path, channels: int, limit: int, split: str) -> _Found:
    files = _files_of_split(path, split) if path.is_dir() else [path]
    counts = [count_rows(file) for file in files]
    chosen = evenly_spaced(sum(counts), limit)
    column = _label_column(files)
    images: list[Tensor] = []
    labels: list[int] = []
    for file, count, end in zip(files, counts, itertools.accumulate(counts), strict=True):
        own = [index - end + count for index in chosen if end - count <= index < end]
        rows, own_labels = read_rows(file, column, own)
        if not all(isinstance(row, dict) and row.get("bytes") for row in rows):
            raise AdderizeError(f"{file} holds no encoded images; expected rows of {{bytes, path}}")
        names = [f"an image of {file}"] * len(rows)
        images += _pixels(Photographs((), rows, names, open_row), channels)
        labels += own_labels
    # Data sets whose labels are kept secret have -1 in their place.
    known = all(isinstance(label, int) and label >= 0 for label in labels)
    return _Found(images, labels if known else ())


def _label_column(files: Sequence[Path]) -> str | None:
    """The finest labels that all files have."""
    names = [set(column_names(file)) for file in files]
    return next((name for name in _LABELS if all(name in found for found in names)), None)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The files of a split; all of them where they are one file, or those of another split."""
    files = parquet_files(folder, "")
    chosen, *others = (parquet_files(folder, *_SPLITS[name]) for name in (split, *_SPLITS))
    if not chosen and len(files) > 1 and files not in others:
        names = [file.name for file in files]
        raise AdderizeError(f"{folder} holds {listed(names)}: name one of them")
    return chosen or files


def _pixels(photographs: Photographs, channels: int) -> list[Tensor]:
    mode = "L" if channels == 1 else "RGB"
    indices = steps(range(len(photographs.items)), "reading images")
    return [photographs.pixels(index, mode) for index in indices]


def _fitted(image: Tensor, size: Sequence[int], path: Path) -> Tensor:
    channels, height, width = size
    if image.shape[0] != channels:
        raise AdderizeError(
            f"the images of {path} have {image.shape[0]} channels, but the network takes {channels}"
        )
    if tuple(image.shape[1:]) == (height, width):
        return image
    if image.is_floating_point():
        found = shape_text(image.shape)
        raise AdderizeError(
            f"the images of {path} are {found} and normalised; expected {channels}x{height}x{width}"
        )
    from torchvision.transforms.v2.functional import center_crop, resize

    scale = max(height / image.shape[1], width / image.shape[2])
    shape = [round(side * scale) for side in image.shape[1:]]
    fitted: Tensor = center_crop(resize(image, shape, antialias=True), [height, width])
    return fitted
