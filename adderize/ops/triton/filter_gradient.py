"""The full-precision filter gradient: cuDNN's weight gradient plus a rank-one term.

In three launches around cuDNN's for float32, two for half precision, each at the memory's speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adderize.ops import convolution
from adderize.ops.formats import is_channels_last, is_nhwc, memory_format
from adderize.ops.geometry import Geometry
from adderize.ops.triton.kernels import filter_gradient as passes
from adderize.ops.triton.tiles import memory_tile

_SAMPLED_POSITIONS = 512
_PROGRAMS = 528
_BLOCK = 512


def full_filter_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dL/dF: shape, dtype and memory format of weight.

    Float32 inputs are always centred: whether they need it is known to the device only. Half
    precision inputs have too few digits to gain from it; g is rounded to their dtype, as a
    convolution's is under autocast, and sums are those of the rounded g.
    """
    geometry = geometry.within(input.shape[2:])
    wanted = memory_format(input, weight)
    grad, parts = _totals(_dense(grad), input.dtype, wanted)
    centre = None
    if input.dtype == torch.float32:
        input, centre = _centred(_dense(input), geometry.padding, wanted)
        geometry = geometry.padded(0, 0)
    result = convolution.weight_gradient(grad, input, weight, geometry)
    return _finished(_dense(result), _dense(weight), centre, parts, geometry.groups)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if is_nhwc(tensor) else tensor.contiguous()


def _totals(grad: Tensor, dtype: torch.dtype, wanted: torch.memory_format) -> tuple[Tensor, Tensor]:
    """g in a dtype and a memory format, and parts of its sums: (splits, channels), float64."""
    images, channels, height, width = grad.shape
    copied = grad.dtype != dtype or not grad.is_contiguous(memory_format=wanted)
    copy = torch.empty_like(grad, dtype=dtype, memory_format=wanted) if copied else grad
    tile = memory_tile(channels, is_nhwc(grad))
    column_tiles = -(-channels // tile["COLUMNS"])
    steps = -(-images * height * width // tile["ROWS"])
    splits = max(1, min(steps, _PROGRAMS // column_tiles))
    parts = torch.empty((splits, channels), dtype=torch.float64, device=grad.device)
    passes.totals[(column_tiles * splits,)](
        grad,
        copy,
        parts,
        images,
        height * width,
        channels,
        splits,
        IN_NHWC=is_nhwc(grad),
        OUT_NHWC=wanted == torch.channels_last,
        COPY=copied,
        **tile,
    )
    return copy, parts


def _centred(
    input: Tensor, padding: tuple[int, int], wanted: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """X - c, padded with 0 - c, and c: a sample's mean of each channel, (channels,)."""
    images, channels, height, width = input.shape
    flags = {"IN_NHWC": is_nhwc(input)}
    centre = torch.empty(channels, dtype=input.dtype, device=input.device)
    passes.centres[(-(-channels // 8),)](
        input,
        centre,
        images,
        height * width,
        channels,
        ROWS=_SAMPLED_POSITIONS,
        COLUMNS=8,
        num_warps=4,
        **flags,
    )
    size = height + 2 * padding[0], width + 2 * padding[1]
    padded = torch.empty(
        (images, channels, *size), dtype=input.dtype, device=input.device, memory_format=wanted
    )
    tile, flags["OUT_NHWC"] = memory_tile(channels, is_nhwc(input)), wanted == torch.channels_last
    blocks = -(-images * size[0] * size[1] // tile["ROWS"]) * -(-channels // tile["COLUMNS"])
    passes.centred[(blocks,)](
        input, centre, padded, images, height, width, channels, *padding, **flags, **tile
    )
    return padded, centre


def _finished(
    convolution: Tensor, weight: Tensor, centre: Tensor | None, parts: Tensor, groups: int
) -> Tensor:
    """wgrad - (F - c) * G, in the dtype and memory format of the weight."""
    wanted = memory_format(weight)
    result = torch.empty_like(weight, memory_format=wanted)
    filters, channels, *kernel = weight.shape
    taps, splits = math.prod(kernel), parts.shape[0]
    passes.finish[(filters * -(-channels * taps // _BLOCK),)](
        convolution,
        weight,
        parts if centre is None else centre,
        parts,
        result,
        splits,
        filters,
        channels,
        taps,
        groups,
        BLOCK=_BLOCK,
        SPLITS=1 << (splits - 1).bit_length(),
        CENTRED=centre is not None,
        CONVOLUTION_NHWC=is_channels_last(convolution),
        W_NHWC=wanted == torch.channels_last,
        OUT_NHWC=wanted == torch.channels_last,
        num_warps=4,
    )
    return result
