"""Which implementation serves which device, and why.

The environment variable ADDERIZE_BACKEND forces one: auto (default), reference, native or triton.
With ADDERIZE_REQUIRE_NATIVE=1 a CPU call that would fall back to the reference raises instead.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops import native, reference

_NATIVE = (torch.float32, torch.uint8)
NAMES = ("auto", "reference", "native", "triton")
# As scikit-build-core reads the same variable when it builds.
_UNSET = ("", "0", "false", "f", "no", "n", "off")


class Choice(NamedTuple):
    """A backend's name, the module that implements it, and the reason for it."""

    name: str
    module: ModuleType
    reason: str

    @property
    def is_reference(self) -> bool:
        """Whether no fast kernels serve."""
        return self.module is reference


def kernel(op: str, operand: Tensor) -> Callable[..., Tensor]:
    """The function that implements an op for tensors like this one.

    What a backend lacks the reference has: it is made of torch's own operators, for any device.
    """
    module = choose(operand.device.type, operand.dtype).module
    found: Callable[..., Tensor] = getattr(module, op, None) or getattr(reference, op)
    return found


def choose(device_type: str, dtype: torch.dtype = torch.float32) -> Choice:
    """The backend that serves tensors of this device type and dtype.

    Raises:
        AdderizeError: ADDERIZE_BACKEND is unknown or cannot serve the device, or
            ADDERIZE_REQUIRE_NATIVE=1 and the CPU would fall back to the reference.
    """
    forced = os.environ.get("ADDERIZE_BACKEND", "auto") or "auto"
    if forced not in NAMES:
        raise AdderizeError(f"ADDERIZE_BACKEND is {forced!r}; expected one of {', '.join(NAMES)}")
    if forced == "reference":
        return Choice("reference", reference, "forced by ADDERIZE_BACKEND")
    if device_type == "cpu":
        return _choose_cpu(dtype, forced)
    if device_type == "cuda" and forced != "native":
        return _choose_cuda(dtype, forced)
    if forced != "auto":
        raise AdderizeError(f"ADDERIZE_BACKEND={forced} cannot serve the device {device_type!r}")
    return Choice("reference", reference, f"no kernels for the device {device_type!r}")


def _choose_cpu(dtype: torch.dtype, forced: str) -> Choice:
    if forced == "triton":
        raise AdderizeError("ADDERIZE_BACKEND=triton cannot serve the CPU: use native or auto")
    if dtype not in _NATIVE and forced == "native":
        raise AdderizeError(f"ADDERIZE_BACKEND=native cannot serve {dtype}: it is float32 only")
    if dtype not in _NATIVE:
        return Choice("reference", reference, f"the native kernels are float32, not {dtype}")
    usable, reason = native.available()
    if usable:
        return Choice("native", native, reason)
    required = os.environ.get("ADDERIZE_REQUIRE_NATIVE", "").lower() not in _UNSET
    if forced == "native" or required:
        raise AdderizeError(
            f"the native CPU kernels are required but not usable: {reason}. "
            "Reinstall with a C++17 compiler, or unset ADDERIZE_REQUIRE_NATIVE and ADDERIZE_BACKEND"
        )
    _warn_of_slowness(reason)
    return Choice("reference", reference, reason)


def _choose_cuda(dtype: torch.dtype, forced: str) -> Choice:
    if dtype == torch.float64:
        if forced == "triton":
            raise AdderizeError("ADDERIZE_BACKEND=triton cannot serve torch.float64: use auto")
        return Choice("reference", reference, "the Triton kernels take at most 32 bits")
    if torch.version.hip and forced != "triton":
        reason = "the Triton kernels are untested on ROCm; ADDERIZE_BACKEND=triton forces them"
        _warn_of_slowness(reason)
        return Choice("reference", reference, reason)
    module, reason = _triton()
    if module is not None:
        return Choice("triton", module, reason)
    if forced == "triton":
        raise AdderizeError(f"ADDERIZE_BACKEND=triton is not usable: {reason}")
    _warn_of_slowness(reason)
    return Choice("reference", reference, reason)


@functools.cache
def _triton() -> tuple[ModuleType | None, str]:
    """The module of the Triton kernels, or why there is none."""
    if importlib.util.find_spec("triton") is None:
        return None, "Triton is not installed (pip install triton)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return None, "Triton needs a C compiler at run time: install gcc or clang, or set CC"
    try:
        import triton

        from adderize.ops import triton as kernels
    except ImportError as error:
        return None, f"Triton cannot be imported: {error}"
    return kernels, f"Triton {triton.__version__}"


@functools.cache
def _warn_of_slowness(reason: str) -> None:
    warnings.warn(f"adder layers run on the slow reference: {reason}", stacklevel=2)
