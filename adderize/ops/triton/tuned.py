"""Tiles that were timed on a device, kept in a file.

One file for each device's name, version of Triton and state of the kernels' sources, in
``tiles/`` of the folder that ADDERIZE_CACHE names: by default ``$XDG_CACHE_HOME/adderize``, or
``~/.cache/adderize``, or where there is no home one for temporary files. `adderize doctor --tune`
writes it, and a process reads it once. What is wrong with it is said in a warning, and the rule
chooses.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from adderize.errors import AdderizeError
from adderize.ops.triton.tiles import Tile
from adderize.whole_files import write_whole


class Machine(NamedTuple):
    """What a choice holds for: the device's name, Triton's version, a digest of the sources."""

    device: str
    triton: str
    kernels: str


def cache_folder() -> Path:
    """Where this package keeps what it can make again."""
    named = os.environ.get("ADDERIZE_CACHE")
    folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "adderize"))
    try:
        return folder.expanduser()
    except RuntimeError:
        # A container's user may have no home, and no name either.
        return Path(tempfile.gettempdir(), "adderize")


def file_of(machine: Machine) -> Path:
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{machine.device} triton {machine.triton}").strip("-")
    return cache_folder() / "tiles" / f"{words}-{machine.kernels}.json"


@functools.cache
def kernels_digest() -> str:
    """Of the sources of the kernels and the lists of tiles."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in (folder / "tiles.py", *sorted((folder / "kernels").glob("*.py"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def known(machine: Machine) -> Mapping[str, Tile]:
    """The tiles of a machine's file by layer; empty without a file that can be used."""
    file = file_of(machine)
    try:
        return _read(file, machine)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        _warn(f"{file} is ignored: {error}; `adderize doctor --tune ARCH` writes it anew")
        return {}


def keep(machine: Machine, tiles: Mapping[str, Tile]) -> Path | None:
    """Adds to the machine's file; several processes may do so at once.

    What :func:`known` has read stays as it was.

    Returns:
        The file, or None where it could not be written, which a warning says.
    """
    file = file_of(machine)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            kept = dict(sorted({**_usable(file, machine), **tiles}.items()))
            content = {**machine._asdict(), "tiles": kept}
            write_whole(file, json.dumps(content, indent=1) + "\n")
    except (AdderizeError, OSError, NotImplementedError) as error:  # the last: no locks there
        _warn(f"{file} cannot be written: {error}; name another folder in ADDERIZE_CACHE")
        return None
    return file


def _usable(file: Path, machine: Machine) -> dict[str, Tile]:
    try:
        return _read(file, machine)
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _read(file: Path, machine: Machine) -> dict[str, Tile]:
    """Raises ValueError or TypeError where the file is not what :func:`keep` writes."""
    content = json.loads(file.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("tiles"), dict):
        raise ValueError("it holds no tiles")
    for name, expected in machine._asdict().items():
        if content.get(name) != expected:
            raise ValueError(f"its {name} is {content.get(name)!r}; expected {expected!r}")
    return {layer: _tile(layer, sizes) for layer, sizes in content["tiles"].items()}


def _tile(layer: str, sizes: Any) -> Tile:
    count = len(Tile._fields)
    right = isinstance(sizes, list) and all(isinstance(s, int | float | None) for s in sizes)
    if not right or len(sizes) != count:
        raise ValueError(f"the tile of {layer!r} is {sizes!r}; expected {count} sizes")
    return Tile(*sizes)


def _warn(text: str) -> None:
    warnings.warn(f"the tiles in {text}", stacklevel=3)
