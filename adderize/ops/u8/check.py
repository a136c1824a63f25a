"""The arguments of the ops on bytes, and what is accepted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops._shapes import check_geometry

_Shape = tuple[int, int, int, int]

MOST_TAPS = (2**31 - 1) // 255  # an int32 holds the largest distance of so many


class Arguments(NamedTuple):
    """What follows the filters in both ops, see `adderize.ops.u8`."""

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    residual_scale: float
    zero_point: int
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    low: float
    high: float
    float_output: bool


def output_shape(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> _Shape:
    """(N, Cout, OH, OW); AdderizeError where the shapes do not fit."""
    size = check_geometry(input, weight, stride, padding, dilation, groups)
    taps = weight[1] * weight[2] * weight[3]
    if taps > MOST_TAPS:
        raise AdderizeError(f"a filter has {taps} taps; 32 bits hold the sum of {MOST_TAPS}")
    return (input[0], weight[0], *size)


_known_output_shape = functools.lru_cache(maxsize=4096)(output_shape)


def check(input: Tensor, filters: Tensor, weight_shape: Sequence[int], a: Arguments) -> _Shape:
    """The output's shape; AdderizeError for a call without a meaning. Values are not looked at."""
    traced = any(type(size) is not int for size in input.shape)
    find: Callable[..., _Shape] = output_shape if traced else _known_output_shape
    geometry = (tuple(a.stride), tuple(a.padding), tuple(a.dilation), a.groups)
    shape = find(tuple(input.shape), tuple(weight_shape), *geometry)
    for name, tensor in (("input", input), ("the filters", filters), ("residual", a.residual)):
        if tensor is not None and tensor.dtype is not torch.uint8:
            raise AdderizeError(f"{name}: found dtype {tensor.dtype}, expected torch.uint8")
    for name, tensor in (("scale", a.scale), ("shift", a.shift)):
        if tensor.dtype is not torch.float32 or tensor.shape != (shape[1],):
            raise AdderizeError(
                f"{name}: found dtype {tensor.dtype} and shape {tuple(tensor.shape)}, expected "
                f"torch.float32 and ({shape[1]},), a number for each filter"
            )
    if a.residual is not None and a.residual.shape != shape:
        raise AdderizeError(
            f"residual: found shape {tuple(a.residual.shape)}, expected the output's {shape}"
        )
    if not input.device == filters.device == a.scale.device == a.shift.device or (
        a.residual is not None and a.residual.device != input.device
    ):
        raise AdderizeError(
            f"input is on {input.device}, another tensor is not: move all to one device"
        )
    _check_numbers(a)
    return shape


def _check_numbers(a: Arguments) -> None:
    if not 0 <= a.zero_point <= 255:
        raise AdderizeError(f"zero_point is {a.zero_point}; expected an integer in [0, 255]")
    if not a.low <= a.high:
        raise AdderizeError(f"low is {a.low} and high {a.high}; expected low <= high")
    if a.float_output:
        return
    if a.low < 0 or a.high > 255 or a.low % 1 or a.high % 1:
        raise AdderizeError(
            f"low is {a.low} and high {a.high}; bytes are clamped to integers in [0, 255]"
        )
