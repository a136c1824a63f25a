"""Image files below a folder, and the classes that its folders stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = frozenset({
    ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip


def is_image_file(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, sorted; through links too.

    Hidden files and folders are left out: notebooks keep copies in ``.ipynb_checkpoints``, and
    macOS has ``._NAME`` beside NAME, which is no image.
    """
    return sorted(_walked(folder))


def visible_folders(folder: Path) -> list[Path]:
    """The folders in one, sorted: they number classes."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _walked(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        place = Path(root)
        folders[:] = [n for n in folders if not _is_hidden(n) and not _leads_back(place / n)]
        yield from filter(is_image_file, (place / n for n in names if not _is_hidden(n)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
