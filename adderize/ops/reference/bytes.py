"""The ops on bytes in plain PyTorch: exact, slow, for any device.

Input (N, Cin, H, W) and filters (Cout, Cin/groups, kh, kw) are uint8 and stand for s * (q - z) with
the same s and z = zero_point, so that the distance is an integer; padded taps hold z:

    acc[n,c,p] = sum_k |x_p[k] - w_c[k]|                                           exact, int32
    v          = float(acc) * scale[c] + shift[c] + residual_scale * float(residual)

`scale` and `shift` are (Cout,) float32, finite; `residual` is uint8 of the output's shape, its zero
point folded into `shift` by the caller. Every operation of v is one float32 operation, rounded to
nearest, in this order, none fused with another: all implementations agree to the bit.

    float_output=False    uint8: v rounded half to even, then clamped to the integers [low, high]
    float_output=True     float32: v clamped to [low, high], which may be infinite

`adder_conv2d_u8_shifted` stays with integers, in 32-bit two's complement, where sums wrap around:

    v = (acc * factor[c] + residual * residual_factor + bias[c]) >> fraction       rounded down

clamped to [low, high], uint8 or int32; `factor` and `bias` are (Cout,) int32, `residual` is uint8
or int32.

A ReLU is low = the output's zero point (or 0.0 of a float). Outputs are channels_last.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.ops.byte_operands import Requantization, Shifting, Window
from adderize.ops.formats import nhwc
from adderize.ops.geometry import Geometry, Shape
from adderize.ops.packing import unpack
from adderize.ops.reference.floats import adder_conv2d


def adder_conv2d_u8(
    input: Tensor, weight: Tensor, zero_point: int, geometry: Geometry, after: Requantization
) -> Tensor:
    """What becomes of the distances: (N, Cout, OH, OW), uint8 or float32."""
    channels = (1, -1, 1, 1)
    v = _distances(input, weight, zero_point, geometry).float()
    v.mul_(after.scale.view(channels)).add_(after.shift.view(channels))
    if after.residual is not None:
        v.add_(after.residual.float().mul_(after.residual_scale))
    if not after.float_output:
        v.round_()
    v.clamp_(after.low, after.high)
    return v.to(after.output_dtype, memory_format=torch.channels_last)


def adder_conv2d_u8_packed(
    input: Tensor,
    packed: Tensor,
    weight_shape: Shape,
    zero_point: int,
    geometry: Geometry,
    after: Requantization,
) -> Tensor:
    """The same for filters that `packing.pack` has packed."""
    weight = unpack(packed, weight_shape, geometry.groups)
    return adder_conv2d_u8(input, weight, zero_point, geometry, after)


def adder_conv2d_u8_shifted(
    input: Tensor,
    packed: Tensor,
    weight_shape: Shape,
    zero_point: int,
    geometry: Geometry,
    after: Shifting,
) -> Tensor:
    """Integers from the distances: (N, Cout, OH, OW), uint8 or int32."""
    weight, channels = unpack(packed, weight_shape, geometry.groups), (1, -1, 1, 1)
    v = _distances(input, weight, zero_point, geometry).long()
    v = v * after.factor.view(channels) + after.bias.view(channels)
    if after.residual is not None:
        v += after.residual.long() * after.residual_factor
    v = ((v + 2**31) % 2**32 - 2**31) >> after.fraction
    v.clamp_(after.low, after.high)
    return v.to(after.output_dtype, memory_format=torch.channels_last)


def _distances(input: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> Tensor:
    """(N, Cout, OH, OW), int32.

    Less the zero point, the padding is zero and the float op applies: its sums of integers are
    exact as long as they stay below 2^24 in float32, 2^53 in float64.
    """
    largest = 255 * weight[0].numel()
    dtype = torch.float32 if largest <= 2**24 else torch.float64
    x, w = (tensor.to(dtype) - zero_point for tensor in (input, weight))
    return -adder_conv2d(x, w, geometry).to(torch.int32)


def to_bytes(input: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """input * (1 / scale) rounded half to even, plus zero_point, within [0, levels]; NaN gives 0.

    Each operation is one in the input's dtype, float32 or float64.
    """
    steps = torch.nan_to_num(input * (1 / scale), nan=-math.inf).round_().add_(zero_point)
    return steps.clamp_(0, levels).to(torch.uint8)


def max_pool2d_u8(input: Tensor, window: Window) -> Tensor:
    """`torch.nn.functional.max_pool2d` of (N, C, H, W) bytes: first down the rows, then across."""
    counts = window.output_size(input.shape[2:])
    stride, padding, dilation, _ = window.geometry
    for axis in (0, 1):
        dim, last = 2 + axis, (counts[axis] - 1) * stride[axis]
        reach = last + (window.kernel_size[axis] - 1) * dilation[axis] + 1
        pads = (padding[axis], max(reach - input.shape[dim] - padding[axis], 0))
        input = F.pad(input, (0, 0, *pads) if axis == 0 else pads)
        taps = (
            input.narrow(dim, tap * dilation[axis], last + 1)
            for tap in range(window.kernel_size[axis])
        )
        step = stride[axis]
        windows = [tap[:, :, ::step] if axis == 0 else tap[..., ::step] for tap in taps]
        input = windows[0]
        for other in windows[1:]:
            input = torch.maximum(input, other)
    return nhwc(input)
