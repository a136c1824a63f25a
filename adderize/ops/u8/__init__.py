"""The op on bytes: an adder convolution of 8-bit inputs and filters that share one grid.

    adderize::adder_conv2d_u8(Tensor input, Tensor weight, Tensor scale, Tensor shift,
                              Tensor? residual, float residual_scale, int zero_point,
                              int[2] stride, int[2] padding, int[2] dilation, int groups,
                              float low, float high, bool float_output) -> Tensor

Input (N, Cin, H, W) and filters (Cout, Cin/groups, kh, kw) are uint8 and stand for s * (q - z) with
the same s and z = zero_point, so that the distance is an integer; padded taps hold z:

    acc[n,c,p] = sum_k |x_p[k] - w_c[k]|                                           exact, int32
    v          = float(acc) * scale[c] + shift[c] + residual_scale * float(residual)

`scale` and `shift` are (Cout,) float32, finite; `residual` is uint8 of the output's shape, its zero
point folded into `shift` by the caller. Every operation of v is one float32 operation, rounded to
nearest, in this order, none fused with another: all implementations agree to the bit.

    float_output=False    uint8: v rounded half to even, then clamped to the integers [low, high]
    float_output=True     float32: v clamped to [low, high], which may be infinite

A ReLU is low = the output's zero point (or 0.0 of a float). Outputs are channels_last.

    adderize::adder_conv2d_u8_packed(Tensor input, Tensor packed, int[4] weight_shape, ...)

is the same for filters that `pack(weight, groups)` has brought once and for all into the kernels'
order, which every machine shares; the first op packs them in each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adderize.ops import backends
from adderize.ops.u8 import native, reference
from adderize.ops.u8.check import Arguments, check
from adderize.ops.u8.max_pool import max_pool2d_bytes
from adderize.ops.u8.packing import check_packed, pack, unpack
from adderize.ops.u8.to_bytes import to_bytes

__all__ = ["max_pool2d_bytes", "pack", "to_bytes", "unpack"]

_ARGUMENTS = (
    "Tensor scale, Tensor shift, Tensor? residual, float residual_scale, int zero_point, "
    "int[2] stride, int[2] padding, int[2] dilation, int groups, float low, float high, "
    "bool float_output"
)

_library = torch.library.Library("adderize", "FRAGMENT")
_library.define(f"adder_conv2d_u8(Tensor input, Tensor weight, {_ARGUMENTS}) -> Tensor")
_library.define(
    f"adder_conv2d_u8_packed(Tensor input, Tensor packed, int[4] weight_shape, {_ARGUMENTS}) "
    "-> Tensor"
)


def _forward(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    a = Arguments(*arguments)
    shape = check(input, weight, weight.shape, a)
    if backends.choose(input.device.type, torch.uint8).name == "native":
        return native.forward(input, pack(weight, a.groups), list(weight.shape), shape, a)
    return reference.forward(input, weight, a)


def _forward_packed(
    input: Tensor, packed: Tensor, weight_shape: list[int], *arguments: Any
) -> Tensor:
    a = Arguments(*arguments)
    shape = check(input, packed, weight_shape, a)
    check_packed(packed, weight_shape, a.groups)
    if backends.choose(input.device.type, torch.uint8).name == "native":
        return native.forward(input, packed, weight_shape, shape, a)
    return reference.forward(input, unpack(packed, weight_shape, a.groups), a)


def _fake(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    a = Arguments(*arguments)
    return _empty(check(input, weight, weight.shape, a), input, a)


def _fake_packed(input: Tensor, packed: Tensor, weight_shape: list[int], *arguments: Any) -> Tensor:
    a = Arguments(*arguments)
    shape = check(input, packed, weight_shape, a)
    check_packed(packed, weight_shape, a.groups)
    return _empty(shape, input, a)


def _empty(shape: Sequence[int], input: Tensor, a: Arguments) -> Tensor:
    dtype = torch.float32 if a.float_output else torch.uint8
    return torch.empty(shape, dtype=dtype, device=input.device, memory_format=torch.channels_last)


for _name, _kernel, _shape in (
    ("adder_conv2d_u8", _forward, _fake),
    ("adder_conv2d_u8_packed", _forward_packed, _fake_packed),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"adderize::{_name}", _shape, lib=_library)
