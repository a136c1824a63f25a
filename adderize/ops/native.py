"""The native CPU backend: the C library of `adderize/csrc`, loaded with ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import sys
from pathlib import Path

import torch  # before the library: it brings the OpenMP runtime whose symbols the library uses

ABI_VERSION = 1
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_READY = False


class _Unusable(Exception):
    """Why the library cannot be used, in one sentence."""


def _library_path() -> Path:
    override = os.environ.get("ADDERIZE_LIBRARY")
    if override:
        return Path(override)
    found = importlib.resources.files("adderize").joinpath("lib", f"libadderize{_SUFFIX}")
    path = Path(str(found))
    if not path.is_file():
        raise _Unusable(
            "the native library was not built: reinstall adderize where a C++17 compiler and CMake "
            "are available"
        )
    return path


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.adderize_abi_version())
    except (OSError, AttributeError) as error:
        raise _Unusable(f"the native library {path} cannot be loaded: {error}") from None
    if found != ABI_VERSION:
        raise _Unusable(
            f"the native library {path} has ABI version {found}, this adderize needs {ABI_VERSION}: "
            "rebuild it with `pip install --force-reinstall` (or `pip install -e .` in a checkout)"
        )
    return library


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        path = _library_path()
        return _open(path), f"native library {path}"
    except _Unusable as error:
        return None, str(error)


def available() -> tuple[bool, str]:
    """Whether the native library can be used, and why (or why not) in one sentence."""
    library, reason = _load()
    if library is not None and not _READY:
        return False, "the native library holds no kernels yet"
    return library is not None, reason


def info() -> dict[str, object]:
    """What `adderize doctor` prints about the native library."""
    ok, reason = available()
    return {"available": ok, "reason": reason, "abi": ABI_VERSION, "threads": torch.get_num_threads()}
