"""Files that are replaced whole or not at all, one by one or several that belong together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adderize.errors import writing

UNFINISHED = ".unfinished-"


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A place beside a file for a new one, which takes its place once it is written.

    Until then the old one stays as it is, whatever ends the process. Of a link it is the file that
    it names; what is no file, such as ``/dev/stdout``, is written to itself.

    Raises:
        AdderizeError: the file cannot be written.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            yield path
            return
        target = path.resolve()
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
        try:
            yield unfinished
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A file with this text in the place of the one that is there.

    Raises:
        AdderizeError: the file cannot be written.
    """
    with replaced_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def unfinished_files(folder: Path) -> Iterator[Path]:
    """A folder within ``folder``, which is made where it is missing; removed in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as unfinished:
        yield Path(unfinished)


@contextmanager
def replaced_files(folder: Path, head: str) -> Iterator[Path]:
    """A folder for new files, which take the place of those in ``folder`` once all are written.

    Until then the old ones stay as they are. ``head`` is the file without which the others cannot
    be read: it goes first and comes last, so that whatever ends the process in between leaves no
    mixture of two writings that looks like one.

    Raises:
        AdderizeError: the folder cannot be written to.
    """
    with writing(folder), unfinished_files(folder) as unfinished:
        yield unfinished
        (folder / head).unlink(missing_ok=True)
        for file in unfinished.iterdir():
            if file.name != head:
                file.replace(folder / file.name)
        (unfinished / head).replace(folder / head)
