"""The float ops on a GPU.

Images are read as N,H,W,C ("channels_last"); contiguous ones are converted on the way in, and
results are written in the format that is asked for. Nothing of the size of the patches is ever
stored, sums run in a fixed order without atomics, and nothing waits for the device. (The
convolution inside the filter gradient is cuDNN's and follows torch.backends.cudnn: TF32,
deterministic. Layers of small groups have a kernel of their own instead.)

In the input gradient a NaN among the inputs gives NaN at that pixel and channel, and one among the
filters at every pixel of its channel, or of small groups at least at those that see it. In the
filters' gradient the sign of a NaN among the filters is 0, as for torch.sign; one among the inputs
counts as if it lay below every filter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from adderize.ops.formats import is_channels_last, memory_format, nhwc
from adderize.ops.geometry import Geometry
from adderize.ops.gradients import SIGNS
from adderize.ops.triton import channelwise
from adderize.ops.triton.choosing import choose_tile
from adderize.ops.triton.filter_gradient import full_filter_gradient
from adderize.ops.triton.kernels import forward as dense_forward
from adderize.ops.triton.kernels import input_gradient as dense_input_gradient
from adderize.ops.triton.kernels import sign_filter_gradient
from adderize.ops.triton.kernels.group_sums import group_sums
from adderize.ops.triton.kernels.parts import add_parts
from adderize.ops.triton.kernels.slope_operands import slope_operands
from adderize.ops.triton.layer import Layer, filters_by_tap
from adderize.ops.triton.rule import Work
from adderize.ops.triton.tiles import (
    FORWARD,
    FORWARD_ODD,
    INPUT_GRADIENT,
    SIGN_POSITIONS,
    Tile,
    chunk,
    memory_tile,
    sign_splits,
    sign_tile,
    splits,
)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _blocks(rows: int, columns: int, tile: Tile | tuple[int, int]) -> int:
    return -(-rows // tile[0]) * -(-columns // tile[1])


def _summed(partial: Tensor, result: Tensor) -> Tensor:
    """The sum of the parts, (parts, elements of the result), in the memory of the result."""
    count, size = partial.shape
    # Many parts are read side by side: one after the other each would wait for the last.
    at_once = 8 if count <= 8 else 32
    block = 1024 // at_once
    add_parts[(-(-size // block),)](partial, result, count, size, AT_ONCE=at_once, BLOCK=block)
    return result


def _parts(count: int, result: Tensor) -> Tensor:
    return torch.empty((count, result.numel()), dtype=torch.float32, device=result.device)


def adder_conv2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Y: (N, Cout, OH, OW), float32."""
    layer = Layer.of(input, weight, geometry)
    wanted = memory_format(input, weight)
    output = torch.empty(
        (layer.images, weight.shape[0], layer.out_height, layer.out_width),
        dtype=torch.float32,
        device=input.device,
        memory_format=wanted,
    )
    if output.numel() == 0:
        return output
    with _on(input.device):
        image, out_nhwc = nhwc(input), wanted == torch.channels_last
        if layer.is_channelwise:
            channelwise.forward(image, weight, output, layer, out_nhwc)
            return output
        return _dense_forward(image, filters_by_tap(weight), output, layer, out_nhwc)


def _dense_forward(
    image: Tensor, filters: Tensor, output: Tensor, layer: Layer, out_nhwc: bool
) -> Tensor:
    even = layer.channels % 4 == 0
    tiles = FORWARD if even else FORWARD_ODD
    terms = layer.taps * layer.channels
    count = splits(layer.groups * _blocks(layer.positions, layer.filters, tiles[0]), terms)
    target = output if count == 1 else _parts(count, output)

    def launch(tile: Tile) -> None:
        blocks = layer.groups * count * _blocks(layer.positions, layer.filters, tile)
        dense_forward.forward[(blocks,)](
            image,
            filters,
            target,
            *layer,
            count,
            output.numel(),
            EVEN=even,
            OUT_NHWC=out_nhwc,
            **tile.options(),
        )

    work = Work(layer.positions, layer.filters, -(-terms // count), layer.groups * count)
    launch(choose_tile(launch, tiles, work, image.device, ("forward", _dtype_name(image))))
    return output if count == 1 else _summed(target, output)


def adder_conv2d_input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dX: shape, dtype and memory format of input."""
    layer = Layer.of(input, weight, geometry)
    wanted, sign = memory_format(input), SIGNS[gradient].input
    result = torch.empty_like(input, memory_format=wanted)
    if result.numel() == 0:
        return result
    with _on(input.device):
        image, output_gradient = nhwc(input), nhwc(grad)
        flags = {"OUT_NHWC": wanted == torch.channels_last, "SIGN": sign}
        if layer.is_channelwise:
            images = output_gradient, image
            channelwise.input_gradient(images, weight, result, layer, **flags)
            return result
        filters, centre = _slope_operands(weight, layer, sign)
        sums = _group_sums(output_gradient, layer)
        operands = output_gradient, sums, image, filters, centre
        return _dense_input_gradient(operands, result, layer, flags)


def _slope_operands(weight: Tensor, layer: Layer, sign: bool) -> tuple[Tensor, Tensor]:
    """w' (groups, kh, kw, Cin/groups, Cout/groups) and the centre of each channel."""
    weight = weight.contiguous(memory_format=memory_format(weight))
    channels, filters, taps = layer.channels, layer.filters, layer.taps
    slopes, centre = (
        torch.empty((layer.groups, *size), dtype=torch.float32, device=weight.device)
        for size in ((taps, channels, filters), (channels,))
    )
    slope_operands[(layer.groups * -(-channels // 4),)](
        weight,
        slopes,
        centre,
        channels,
        filters,
        taps,
        ROWS=1024,
        COLUMNS=4,
        NHWC=is_channels_last(weight),
        SIGN=sign,
        num_warps=8,
    )
    return slopes, centre


def _group_sums(grad: Tensor, layer: Layer) -> Tensor:
    """The sum of g over each group's filters: (N, OH, OW, groups); g in N,H,W,C order."""
    size = layer.images, layer.out_height, layer.out_width, layer.groups
    sums = torch.empty(size, dtype=torch.float32, device=grad.device)
    tile = memory_tile(layer.filters)
    blocks = -(-layer.positions // tile["ROWS"]) * layer.groups
    group_sums[(blocks,)](grad, sums, layer.positions, layer.filters, layer.groups, **tile)
    return sums


def _dense_input_gradient(
    operands: tuple[Tensor, ...], result: Tensor, layer: Layer, flags: dict[str, bool]
) -> Tensor:
    residues_h, residues_w = layer.residues
    rows = layer.images * -(-layer.height // residues_h) * -(-layer.width // residues_w)
    residues = residues_h * residues_w
    terms = -(-layer.taps // residues) * layer.filters
    copies = residues * layer.groups
    count = splits(copies * _blocks(rows, layer.channels, INPUT_GRADIENT[0]), terms)
    target = result if count == 1 else _parts(count, result)

    def launch(tile: Tile) -> None:
        blocks = copies * count * _blocks(rows, layer.channels, tile)
        dense_input_gradient.input_gradient[(blocks,)](
            *operands,
            target,
            *layer,
            *layer.periods,
            count,
            result.numel(),
            CHUNK=chunk(layer.filters),
            EVEN=layer.filters % 4 == 0,
            **flags,
            **tile.options(),
        )

    work = Work(rows, layer.channels, -(-terms // count), copies * count, tensors=2)
    kernel = "input gradient", _dtype_name(result), *(("signs",) if flags["SIGN"] else ())
    launch(choose_tile(launch, INPUT_GRADIENT, work, result.device, kernel))
    return result if count == 1 else _summed(target, result)


def adder_conv2d_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dF: shape, dtype and memory format of weight."""
    layer = Layer.of(input, weight, geometry)
    wanted = memory_format(weight)
    if layer.images == 0:
        return torch.zeros_like(weight, memory_format=wanted)
    sign = SIGNS[gradient].filters
    with _on(input.device):
        if layer.is_channelwise:
            images = nhwc(grad), nhwc(input)
            return channelwise.filter_gradient(*images, weight, layer, sign=sign)
        if not sign:
            return full_filter_gradient(grad, input, weight, geometry)
        output_gradient, image = (nhwc(each).permute(0, 2, 3, 1) for each in (grad, input))
        result = _dense_sign_gradient(output_gradient, image, filters_by_tap(weight), layer)
        result = result.permute(0, 3, 1, 2).to(weight.dtype)
        return result.contiguous(memory_format=wanted)


def _dense_sign_gradient(grad: Tensor, image: Tensor, filters: Tensor, layer: Layer) -> Tensor:
    """dF: (Cout, kh, kw, Cin/groups), float32, of g and the input in N,H,W,C order."""
    grouped = layer.groups, -1
    grad, image = grad.unflatten(3, grouped), image.unflatten(3, grouped)
    filters = filters.unflatten(0, grouped)
    more = -layer.filters % 4, -layer.channels % 4
    if any(more):
        grad, image = pad(grad, (0, more[0])), pad(image, (0, more[1]))
        filters = pad(filters, (0, more[1], 0, 0, 0, 0, 0, more[0]))
    padded = layer._replace(filters=grad.shape[4], channels=image.shape[4])
    tile = sign_tile(padded.filters)
    blocks = layer.groups * _blocks(padded.filters, layer.taps * padded.channels, tile)
    count = sign_splits(blocks, tile, layer.positions // SIGN_POSITIONS)
    parts = _parts(count, filters)
    sign_filter_gradient.dense[(blocks * count,)](
        grad,
        grad.sum((0, 1, 2)),
        image,
        filters,
        parts,
        *padded,
        count,
        filters.numel(),
        POSITIONS=SIGN_POSITIONS,
        **tile.options(),
    )
    result = _summed(parts, torch.empty_like(filters))
    return result[:, : layer.filters, ..., : layer.channels].flatten(0, 1)
