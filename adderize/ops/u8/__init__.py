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
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adderize.ops._shapes import output_size
from adderize.ops.u8 import reference
from adderize.ops.u8.check import check

_library = torch.library.Library("adderize", "FRAGMENT")
_library.define(
    "adder_conv2d_u8(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? residual, "
    "float residual_scale, int zero_point, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, float low, float high, bool float_output) -> Tensor"
)


def _forward(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    zero_point: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float,
    high: float,
    float_output: bool,
) -> Tensor:
    geometry = (stride, padding, dilation, groups)
    check(input, weight, scale, shift, residual, zero_point, *geometry, low, high, float_output)
    distances = reference.distances(input, weight, zero_point, *geometry)
    return reference.epilogue(
        distances, scale, shift, residual, residual_scale, low, high, float_output
    )


def _fake(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    low: float,
    high: float,
    float_output: bool,
) -> Tensor:
    geometry = (stride, padding, dilation, groups)
    check(input, weight, scale, shift, residual, zero_point, *geometry, low, high, float_output)
    size = output_size(input, weight, stride, padding, dilation)
    return torch.empty(
        (input.shape[0], weight.shape[0], *size),
        dtype=torch.float32 if float_output else torch.uint8,
        device=input.device,
        memory_format=torch.channels_last,
    )


_library.impl("adder_conv2d_u8", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("adderize::adder_conv2d_u8", _fake, lib=_library)
