"""Finds, loads and describes the C library of `adderize/csrc`."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64
from pathlib import Path
from typing import Any

import torch  # before the library: it brings the OpenMP runtime whose symbols the library uses

from adderize.errors import AdderizeError
from adderize.ops.byte_operands import Window
from adderize.ops.geometry import Geometry

ABI_VERSION = 9
CPUS = ("avx512", "avx2", "portable")
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


class ShapeStruct(ctypes.Structure):
    """`adderize_shape` of adderize.h."""

    _fields_ = [
        (name, c_int64)
        for name in (
            *("n", "c", "h", "w", "cout", "kh", "kw", "stride_h", "stride_w"),
            *("padding_h", "padding_w", "dilation_h", "dilation_w", "groups", "oh", "ow"),
        )
    ]


@functools.lru_cache(maxsize=4096)
def shape_of(input: Sequence[int], weight: Sequence[int], geometry: Geometry) -> ShapeStruct:
    """The struct for shapes of input and filters; the library only reads it."""
    cout, _, *kernel = weight
    size = geometry.output_size(input[2:], kernel)
    stride, padding, dilation, groups = geometry.within(input[2:])
    return ShapeStruct(*input, cout, *kernel, *stride, *padding, *dilation, groups, *size)


@functools.lru_cache(maxsize=4096)
def pooling_shape(input: Sequence[int], window: Window) -> ShapeStruct:
    """The struct for a pooling window."""
    stride, padding, dilation, _ = window.geometry.within(input[2:])
    size = window.output_size(input[2:])
    kernel = window.kernel_size
    return ShapeStruct(*input, input[1], *kernel, *stride, *padding, *dilation, 1, *size)


class EpilogueStruct(ctypes.Structure):
    """`adderize_u8_epilogue` of adderize.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "residual", "output")),
        *((name, c_float) for name in ("residual_scale", "low", "high")),
        ("float_output", c_int),
    ]


class ShiftEpilogueStruct(ctypes.Structure):
    """`adderize_u8_shift_epilogue` of adderize.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("factor", "bias", "residual", "output")),
        *((name, c_int32) for name in ("residual_factor", "low", "high")),
        *((name, c_int) for name in ("fraction", "int32_residual", "int32_output")),
    ]


class _NotBuiltError(Exception):
    """Why there is no library, in one sentence."""


_FLOATS = _DOUBLES = _BYTES = ctypes.c_void_p
_SHAPE, _STRIDES = POINTER(ShapeStruct), POINTER(c_int64)
_SIGNATURES: dict[str, list[object]] = {
    "adderize_forward": [_SHAPE, _FLOATS, _FLOATS, _STRIDES, _FLOATS, c_int, c_int],
    "adderize_input_gradient": [
        *(_SHAPE, _FLOATS, _FLOATS, _FLOATS, _STRIDES, _FLOATS, c_int, c_int)
    ],
    "adderize_sign_filter_gradient": [
        *(_SHAPE, _FLOATS, _FLOATS, _FLOATS, _STRIDES, _FLOATS, c_int)
    ],
    "adderize_depthwise_products": [_SHAPE, _FLOATS, _FLOATS, _FLOATS, c_int],
    "adderize_forward_u8": [_SHAPE, _BYTES, _BYTES, c_int, POINTER(EpilogueStruct), c_int],
    "adderize_forward_u8_shifted": [
        *(_SHAPE, _BYTES, _BYTES, c_int, POINTER(ShiftEpilogueStruct), c_int)
    ],
    "adderize_to_bytes": [c_int64, _FLOATS, c_float, c_float, c_int, _BYTES, c_int],
    "adderize_max_pool_u8": [_SHAPE, _BYTES, _BYTES, c_int],
    "adderize_transpose": [c_int64, c_int64, c_int64, _FLOATS, _FLOATS, c_int],
    "adderize_centre": [c_int64, c_int64, _FLOATS, _FLOATS, POINTER(c_int)],
    "adderize_channel_totals": [c_int64, c_int64, _FLOATS, _DOUBLES, c_int],
    "adderize_register_loop": [
        *(c_int, c_int64, POINTER(c_float), c_int, POINTER(c_int64), POINTER(c_double))
    ],
    "adderize_set_cpu": [c_char_p],
    "adderize_has_openmp": [],
}


def _path() -> Path:
    override = os.environ.get("ADDERIZE_LIBRARY")
    if override:
        return Path(override)
    found = importlib.resources.files("adderize").joinpath("lib", f"libadderize{_SUFFIX}")
    path = Path(str(found))
    if not path.is_file():
        raise _NotBuiltError(
            "the native library was not built: reinstall adderize where a C++17 compiler is "
            "available"
        )
    return path


def _reinstall() -> str:
    advice = "reinstall adderize (`pip install -e .` in a checkout)"
    forced = os.environ.get("ADDERIZE_LIBRARY")
    return f"Unset ADDERIZE_LIBRARY, or {advice}" if forced else advice.capitalize()


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.adderize_abi_version())
    except (OSError, AttributeError) as error:
        raise AdderizeError(
            f"the native library {path} cannot be loaded: {error}. {_reinstall()}"
        ) from None
    if found != ABI_VERSION:
        raise AdderizeError(
            f"the native library {path} has ABI version {found} but this adderize needs "
            f"{ABI_VERSION}. {_reinstall()}"
        )
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    for name in ("adderize_active_cpu", "adderize_available_cpus"):
        getattr(library, name).restype = c_char_p
    return library


def _force_cpu(library: ctypes.CDLL) -> None:
    name = os.environ.get("ADDERIZE_CPU") or "auto"
    if library.adderize_set_cpu(name.encode()):
        raise AdderizeError(
            f"ADDERIZE_CPU is {name!r}, but this machine and library offer "
            f"{library.adderize_available_cpus().decode()}"
        )


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None where it was not built, and the reason in one sentence.

    Raises:
        AdderizeError: there is a library, but it is stale or broken, or ADDERIZE_CPU names an
            instruction set that it or the machine lacks.
    """
    try:
        path = _path()
        library = _open(path)
        _force_cpu(library)
    except _NotBuiltError as error:
        return None, str(error)
    return library, f"native kernels for {library.adderize_active_cpu().decode()} from {path}"


def available() -> tuple[bool, str]:
    """Whether the native library can be used, and why (or why not) in one sentence."""
    found, reason = load()
    return found is not None, reason


def kernels() -> ctypes.CDLL:
    """The library; AdderizeError where it cannot be used."""
    library, reason = load()
    if library is None:
        raise AdderizeError(reason)
    return library


def call(name: str, *arguments: object) -> None:
    """Call a function of the library that returns a status."""
    status = getattr(kernels(), name)(*arguments)
    if status == 2:
        raise MemoryError(f"{name}: no memory for its working buffers")
    if status == 1:
        raise AdderizeError(f"{name} refused its arguments")
    if status:
        raise RuntimeError(f"{name} failed with status {status}: please report it")


def set_cpu(name: str) -> None:
    """Make an instruction set active for the whole process: one of CPUS, or "auto"."""
    if kernels().adderize_set_cpu(name.encode()):
        offered = kernels().adderize_available_cpus().decode()
        raise AdderizeError(f"the instruction set {name!r} is not among those offered: {offered}")


def info() -> dict[str, Any]:
    """What `adderize doctor` prints: path, ABI version, instruction sets, OpenMP, threads."""
    try:
        library, reason = load()
    except AdderizeError as error:
        library, reason = None, str(error)
    facts: dict[str, Any] = {"available": library is not None, "reason": reason}
    if library is None:
        return facts
    return facts | {
        "path": str(_path()),
        "abi_version": ABI_VERSION,
        "cpu": library.adderize_active_cpu().decode(),
        "cpus": library.adderize_available_cpus().decode().split(","),
        "openmp": bool(library.adderize_has_openmp()),
        "threads": torch.get_num_threads(),
    }
