"""The op that puts floats on a grid of bytes.

    adderize::to_bytes(Tensor input, float scale, int zero_point, int levels) -> Tensor

uint8 of the input's shape and strides: input * (1 / scale) rounded half to even, plus zero_point,
within [0, levels]; 0 for a NaN. Each operation is one in the input's dtype, float32 or float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops import backends
from adderize.ops.native.library import call

_library = torch.library.Library("adderize", "FRAGMENT")
_library.define("to_bytes(Tensor input, float scale, int zero_point, int levels) -> Tensor")


def to_bytes(values: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """The op."""
    q: Tensor = torch.ops.adderize.to_bytes(values, scale, zero_point, levels)
    return q


def _to_bytes(input: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    _check_grid(input, scale, levels)
    on_cpu = input.device.type == "cpu" and input.dtype is torch.float32
    if on_cpu and backends.choose("cpu", torch.uint8).name == "native":
        image = input if _is_dense(input) else input.contiguous()
        output = torch.empty_like(image, dtype=torch.uint8)
        numbers = (1 / scale, zero_point, levels)
        threads = torch.get_num_threads()
        pointers = image.data_ptr(), output.data_ptr()
        call("adderize_to_bytes", image.numel(), pointers[0], *numbers, pointers[1], threads)
        return output
    steps = torch.nan_to_num(input * (1 / scale), nan=-math.inf).round_().add_(zero_point)
    return steps.clamp_(0, levels).to(torch.uint8)


def _empty_bytes(input: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    _check_grid(input, scale, levels)
    return torch.empty_like(input if _is_dense(input) else input.contiguous(), dtype=torch.uint8)


def _check_grid(input: Tensor, scale: float, levels: int) -> None:
    if input.dtype not in (torch.float32, torch.float64):
        raise AdderizeError(f"input: found dtype {input.dtype}, expected float32 or float64")
    if not 0 < scale < math.inf or not 1 <= levels <= 255:
        raise AdderizeError(
            f"scale is {scale} and levels {levels}; expected a positive number and 1 to 255"
        )


def _is_dense(image: Tensor) -> bool:
    return image.is_contiguous() or image.is_contiguous(memory_format=torch.channels_last)


_library.impl("to_bytes", _to_bytes, "CompositeExplicitAutograd")
torch.library.register_fake("adderize::to_bytes", _empty_bytes, lib=_library)
