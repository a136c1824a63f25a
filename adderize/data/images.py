"""A batch of normalised images for a network to look at, from whatever they are stored in."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCES = (
    "an image file, a folder of images (searched through), a Hugging Face parquet file or a folder "
    "with such files, a folder with MNIST/raw, or an array (.npy, .pt)"
)
_IMAGE_FILES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_IDX_SETS = ("MNIST", "FashionMNIST", "KMNIST")
_SPLITS = {"train": ("train",), "test": ("test", "val")}


class Statistics(NamedTuple):
    """Mean and deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


MNIST = Statistics((0.1307,), (0.3081,))
CIFAR10 = Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def usual_statistics(model: nn.Module, size: Sequence[int]) -> Statistics:
    """What a network's inputs are usually normalised with.

    Args:
        model: its own statement counts (timm's ``default_cfg``).
        size: (C, H, W); else MNIST's for one channel, CIFAR-10's for 3x32x32, or ImageNet's.

    Raises:
        AdderizeError: neither one nor three channels, and no statement.
    """
    stated = getattr(model, "default_cfg", None)
    if isinstance(stated, dict) and "mean" in stated and "std" in stated:
        return Statistics(tuple(stated["mean"]), tuple(stated["std"]))
    if size[0] == 1:
        return MNIST
    if size[0] != 3:
        raise AdderizeError(f"no usual mean and deviation for {size[0]} channels: give both")
    return CIFAR10 if tuple(size[1:]) == (32, 32) else IMAGENET


def load_images(
    source: str | Path,
    size: Sequence[int],
    statistics: Statistics,
    *,
    limit: int = 256,
    split: str = "test",
) -> Tensor:
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
        (N, C, H, W) float32 on the CPU.

    Raises:
        AdderizeError: nothing there, damaged files, images that do not fit the size.
    """
    path = Path(source)
    if limit < 1:
        raise AdderizeError(f"limit is {limit}; expected at least one image")
    if any(len(values) not in (1, size[0]) for values in statistics) or min(statistics.std) <= 0:
        raise AdderizeError(
            f"mean {statistics.mean} and deviation {statistics.std} do not fit {size[0]} channels; "
            "expected one value a channel, deviations above 0"
        )
    found = _reader(path)(path, size[0], limit, split)
    if not found:
        raise AdderizeError(f"{path} holds no images; expected {SOURCES}")
    images = [_fitted(image, size, path) for image in found]
    if images[0].is_floating_point():
        return torch.stack(images).float()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
    return (torch.stack(images) / 255 - mean) / std


_Reader = Callable[[Path, int, int, str], Sequence[Tensor]]


def _reader(path: Path) -> _Reader:
    if path.is_dir():
        if any((path / name / "raw").is_dir() for name in _IDX_SETS):
            return _read_idx
        return _read_parquet if any(path.glob("*.parquet")) else _read_files
    if not path.is_file():
        raise AdderizeError(f"{path} does not exist; expected {SOURCES}")
    if path.suffix == ".parquet":
        return _read_parquet
    if path.suffix in (".npy", ".pt"):
        return _read_array
    if path.suffix.lower() in _IMAGE_FILES:
        return _read_files
    raise AdderizeError(f"{path} is of an unknown kind; expected {SOURCES}")


def _spread(count: int, limit: int) -> list[int]:
    number = min(count, limit)
    return [index * count // number for index in range(number)]


def _read_idx(path: Path, channels: int, limit: int, split: str) -> Sequence[Tensor]:
    from torchvision import datasets

    name = next(name for name in _IDX_SETS if (path / name / "raw").is_dir())
    try:
        pixels: Tensor = getattr(datasets, name)(path, train=split == "train").data
    except Exception as error:
        reason = str(error) or repr(error)
        raise AdderizeError(f"cannot read {path / name / 'raw'}: {reason}") from error
    return [pixels[index][None] for index in _spread(len(pixels), limit)]


def _read_array(path: Path, channels: int, limit: int, split: str) -> Sequence[Tensor]:
    import numpy as np

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
    return [array[index] for index in _spread(len(array), limit)]


def _read_files(path: Path, channels: int, limit: int, split: str) -> Sequence[Tensor]:
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _IMAGE_FILES)
    return [
        _decoded(files[index], channels, str(files[index])) for index in _spread(len(files), limit)
    ]


def _read_parquet(path: Path, channels: int, limit: int, split: str) -> Sequence[Tensor]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise AdderizeError("parquet files need pyarrow: pip install pyarrow") from error
    if path.is_dir():
        path = _file_of_split(path, split)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        column = next((name for name in ("img", "image") if name in columns), None)
        if column is None:
            found = ", ".join(columns)
            raise AdderizeError(f"{path} has the columns {found}; expected img or image")
        values = file.read(columns=[column])[column]
        rows = values.take(_spread(len(values), limit)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise AdderizeError(f"cannot read {path} as a parquet file: {error}") from error
    contents = [row.get("bytes") if isinstance(row, dict) else None for row in rows]
    if not all(contents):
        raise AdderizeError(f"{path} holds no encoded images in {column}; expected {{bytes, path}}")
    return [
        _decoded(io.BytesIO(content), channels, f"an image of {path}")
        for content in contents
        if content
    ]


def _file_of_split(folder: Path, split: str) -> Path:
    files = sorted(folder.glob("*.parquet"))
    chosen = [f for start in _SPLITS[split] for f in files if f.name.startswith(start)]
    if not chosen and len(files) > 1:
        names = ", ".join(f.name for f in files[:5])
        raise AdderizeError(f"{folder} holds {names}: name one of them")
    return (chosen or files)[0]


def _decoded(file: Path | io.BytesIO, channels: int, where: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return _pixels(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise AdderizeError(f"{where} cannot be decoded: {error}") from error


def _pixels(image: Image) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels: Tensor = pil_to_tensor(image)
    return pixels


def _fitted(image: Tensor, size: Sequence[int], path: Path) -> Tensor:
    channels, height, width = size
    if image.shape[0] != channels:
        raise AdderizeError(
            f"the images of {path} have {image.shape[0]} channels, but the network takes {channels}"
        )
    if tuple(image.shape[1:]) == (height, width):
        return image
    if image.is_floating_point():
        found = "x".join(map(str, image.shape))
        raise AdderizeError(
            f"the images of {path} are {found} and normalised; expected {channels}x{height}x{width}"
        )
    from torchvision.transforms.v2.functional import center_crop, resize

    scale = max(height / image.shape[1], width / image.shape[2])
    shape = [round(side * scale) for side in image.shape[1:]]
    fitted: Tensor = center_crop(resize(image, shape, antialias=True), [height, width])
    return fitted
