"""What the op on bytes accepts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops._shapes import check_geometry, output_size

MOST_TAPS = (2**31 - 1) // 255  # an int32 holds the largest distance of so many


def check(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    low: float,
    high: float,
    float_output: bool,
) -> None:
    """Raise AdderizeError for a call that has no meaning; values of tensors are not looked at."""
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.dtype != torch.uint8:
            raise AdderizeError(f"{name} has dtype {tensor.dtype}; expected torch.uint8")
    check_geometry(input, weight, stride, padding, dilation, groups)
    taps = weight.shape[1] * weight.shape[2] * weight.shape[3]
    if taps > MOST_TAPS:
        raise AdderizeError(f"a filter has {taps} taps; 32 bits hold the sum of {MOST_TAPS}")
    if not 0 <= zero_point <= 255:
        raise AdderizeError(f"zero_point is {zero_point}; expected an integer in [0, 255]")
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor.dtype != torch.float32 or tensor.shape != (weight.shape[0],):
            raise AdderizeError(
                f"{name} has dtype {tensor.dtype} and shape {tuple(tensor.shape)}; expected "
                f"torch.float32 and ({weight.shape[0]},), a number for each filter"
            )
    if residual is not None:
        expected = (
            input.shape[0],
            weight.shape[0],
            *output_size(input, weight, stride, padding, dilation),
        )
        if residual.dtype != torch.uint8 or residual.shape != expected:
            raise AdderizeError(
                f"residual has dtype {residual.dtype} and shape {tuple(residual.shape)}; expected "
                f"torch.uint8 and {tuple(expected)}, the output's shape"
            )
    for name, other in (("scale", scale), ("shift", shift), ("residual", residual)):
        if other is not None and other.device != input.device:
            raise AdderizeError(f"{name} is on {other.device} but input on {input.device}")
    check_bounds(low, high, float_output)


def check_bounds(low: float, high: float, float_output: bool) -> None:
    if not low <= high:
        raise AdderizeError(f"low is {low} and high {high}; expected low <= high")
    if not float_output and not (low >= 0 and high <= 255 and low % 1 == 0 and high % 1 == 0):
        raise AdderizeError(
            f"low is {low} and high {high}; bytes are clamped to integers in [0, 255]"
        )
