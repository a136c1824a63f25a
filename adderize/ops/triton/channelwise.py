"""Depthwise layers and groups of a few channels: which kernel serves one, in which tiles."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from adderize.ops.formats import memory_format
from adderize.ops.triton.kernels import channelwise, channelwise_filter_gradient, depthwise
from adderize.ops.triton.layer import Layer, taps_by_channel, taps_by_filter

_THREADS = 128
_NEIGHBOURS = 4  # channels of a thread: 16 bytes of float32
# Of a filter gradient: two for each that an H100 runs at once, so that the last ones end together.
_MULTIPROCESSORS, _REGISTERS, _TURNS = 132, 2**16, 2
_FEWEST_STEPS = 4
_MOST_ROWS_OF_TAPS, _LONGEST_WINDOW, _LONGEST_STRIDE = 7, 64, 4
# Triton before 3.3 has none; its depthwise layers are groups of one channel.
_HAS_TUPLES = hasattr(tl, "tuple")


class Launch(NamedTuple):
    """A kernel with its tile and the compiler's options; `splits`: parts of a filter gradient."""

    kernel: Any
    options: dict[str, int]
    programs: int
    turns: float
    """Of a program's innermost loop."""
    splits: int = 1


def is_unrolled(layer: Layer) -> bool:
    """Whether the kernels for depthwise layers serve it: a few rows of taps, close together."""
    return (
        _HAS_TUPLES
        and layer.channels == layer.filters == 1
        and layer.kernel_height <= _MOST_ROWS_OF_TAPS
        and (layer.kernel_height - 1) * layer.dilation_h <= _LONGEST_WINDOW
        and layer.stride_h <= _LONGEST_STRIDE
    )


@functools.lru_cache(maxsize=4096)
def forward_launch(layer: Layer) -> Launch:
    if is_unrolled(layer):
        tile = _depthwise_tile(layer)
        blocks = _blocks(-(-layer.out_height // tile["STRIP"]) * layer.out_width, tile)
        programs = layer.images * blocks * _column_tiles(layer, tile)
        return Launch(depthwise.forward, tile, programs, layer.kernel_width)
    tile = _group_tile(layer.channels, layer.filters, 4)
    blocks = _blocks(layer.out_height * layer.out_width, tile)
    programs = layer.images * blocks * _vector_tiles(layer.groups * layer.filters, tile)
    turns = layer.taps * layer.channels / tile["IN"]
    return Launch(channelwise.forward, tile, programs, turns)


@functools.lru_cache(maxsize=4096)
def input_gradient_launch(layer: Layer) -> Launch:
    columns = -(-layer.width // layer.stride_w)
    if is_unrolled(layer):
        tile = _depthwise_tile(layer)
        strips = -(-(layer.height + layer.padding_h % layer.stride_h) // tile["STRIP"])
        programs = layer.images * _blocks(strips * columns, tile) * _column_tiles(layer, tile)
        turns = layer.kernel_width / layer.stride_w
        return Launch(depthwise.input_gradient, tile, programs * layer.stride_w, turns)
    tile = _group_tile(layer.filters, layer.channels, 4)
    blocks = _blocks(-(-layer.height // layer.stride_h) * columns, tile)
    programs = layer.images * blocks * _vector_tiles(layer.groups * layer.channels, tile)
    residues = layer.stride_h * layer.stride_w
    turns = layer.taps * layer.filters / tile["IN"] / residues
    tile |= _at_most(168)
    return Launch(channelwise.input_gradient, tile, programs * residues, turns)


@functools.lru_cache(maxsize=4096)
def filter_gradient_launch(layer: Layer, sign: bool) -> Launch:
    kernel = channelwise_filter_gradient.depthwise
    if is_unrolled(layer):
        tile = _depthwise_filter_tile(layer, sign)
        rows = -(-layer.out_height // tile["STRIP"]) * layer.out_width
        blocks = _column_tiles(layer, tile) * -(-layer.kernel_width // tile["TAPS_W"])
    else:
        kernel = channelwise_filter_gradient.grouped
        tile = _group_tile(layer.channels, layer.filters, 2)
        rows = layer.out_height * layer.out_width
        vectors = _vector_tiles(layer.groups * layer.filters, tile)
        blocks = vectors * layer.taps * (layer.channels // tile["IN"])
    steps = layer.images * _blocks(rows, tile)
    at_once = _REGISTERS // (_THREADS * tile.get("maxnreg", 128)) * _MULTIPROCESSORS
    splits = max(1, min(_TURNS * at_once // blocks, steps // _FEWEST_STEPS))
    return Launch(kernel, tile, blocks * splits, steps / splits, splits)


def _blocks(positions: int, tile: dict[str, int]) -> int:
    return -(-positions // tile["ROWS"])


def _column_tiles(layer: Layer, tile: dict[str, int]) -> int:
    return -(-layer.groups // tile["COLUMNS"])


def _vector_tiles(channels: int, tile: dict[str, int]) -> int:
    return -(-channels // (tile["GROUPS"] * tile["OUT"]))


def _depthwise_tile(layer: Layer) -> dict[str, int]:
    channels = layer.groups
    columns = min((64, 32, 16), key=lambda size: -(-channels // size) * size)
    return {
        "KERNEL_H": layer.kernel_height,
        "STRIDE": layer.stride_h,
        "DILATION": layer.dilation_h,
        "STRIP": layer.stride_h if layer.stride_h > 1 else 4,
        "ROWS": _THREADS * _NEIGHBOURS // columns,
        "COLUMNS": columns,
        "VECTOR": math.gcd(channels, _NEIGHBOURS),
        "num_warps": _THREADS // 32,
    }


def _depthwise_filter_tile(layer: Layer, sign: bool) -> dict[str, int]:
    """With as many columns of taps as their sums find registers, and long strips for many rows."""
    sums = 9 if sign else 15
    columns = max(1, min(3, layer.kernel_width, sums // layer.kernel_height))
    tile = {**_depthwise_tile(layer), "TAPS_W": columns}
    if not sign and layer.stride_h <= 2 and layer.dilation_h == 1 and tile["VECTOR"] == 4:
        few = columns * layer.kernel_height <= 9
        tile |= _at_most(128 if few else 168)
        if not few and layer.stride_h == 1:
            tile |= _long_strips(layer)
    return tile


def _long_strips(layer: Layer) -> dict[str, int]:
    """The strip that reads the fewest rows of the input, in the tile that wastes the least."""

    def rows_read(strip: int) -> int:
        return -(-layer.out_height // strip) * (strip + layer.kernel_height - 1)

    strip = min((4, 7, 8), key=rows_read)
    positions = -(-layer.out_height // strip) * layer.out_width

    def taken(columns: int) -> int:
        rows = _THREADS * _NEIGHBOURS // columns
        return -(-positions // rows) * rows * -(-layer.groups // columns) * columns

    # Of equals 32: many columns leave many parts of sums, and few are read in short pieces.
    columns = min((32, 64, 16), key=taken)
    return {"STRIP": strip, "COLUMNS": columns, "ROWS": _THREADS * _NEIGHBOURS // columns}


def _group_tile(summed: int, results: int, positions_a_thread: int) -> dict[str, int]:
    """For `summed` channels of a group, and as many results of a group."""
    vector = math.gcd(results, _NEIGHBOURS)
    groups = 64 // vector
    return {
        "ROWS": _THREADS // groups * positions_a_thread,
        "GROUPS": groups,
        "IN": math.gcd(summed, _NEIGHBOURS),
        "OUT": vector,
        "num_warps": _THREADS // 32,
    }


def _at_most(registers: int) -> dict[str, int]:
    """Registers of a thread: fewer let more blocks share a multiprocessor; these spill nothing."""
    return {} if torch.version.hip else {"maxnreg": registers}


def forward(image: Tensor, weight: Tensor, output: Tensor, layer: Layer, nhwc: bool) -> None:
    """Y of an image in N,H,W,C order, into `output`."""
    launch = forward_launch(layer)
    launch.kernel[(launch.programs,)](
        image, taps_by_filter(weight), output, *layer, OUT_NHWC=nhwc, **launch.options
    )


def input_gradient(
    images: tuple[Tensor, Tensor], weight: Tensor, result: Tensor, layer: Layer, **flags: bool
) -> None:
    """dX of g and X in N,H,W,C order, into `result`."""
    launch = input_gradient_launch(layer)
    operands = *images, taps_by_channel(weight, layer.groups), result, *layer
    periods = layer.periods[1:] if is_unrolled(layer) else layer.periods
    launch.kernel[(launch.programs,)](*operands, *periods, **flags, **launch.options)


def filter_gradient(
    grad: Tensor, image: Tensor, weight: Tensor, layer: Layer, *, sign: bool
) -> Tensor:
    """dF of g and X in N,H,W,C order: shape, dtype and memory format of weight."""
    weight = weight.contiguous(memory_format=memory_format(weight))
    launch = filter_gradient_launch(layer, sign)
    parts, totals = (
        torch.empty((launch.splits, size), dtype=torch.float64, device=grad.device)
        for size in (weight.numel(), weight.shape[0])
    )
    filters = taps_by_filter(weight) if sign else parts
    operands = grad, image, filters, parts, totals, *layer, launch.splits
    launch.kernel[(launch.programs,)](*operands, SIGN=sign, **launch.options)
    return _combined(parts, totals, weight, sign)


def _combined(parts: Tensor, totals: Tensor, weight: Tensor, sign: bool) -> Tensor:
    wanted = memory_format(weight)
    result = torch.empty_like(weight, memory_format=wanted)
    filters, channels, *kernel = weight.shape
    taps, columns = math.prod(kernel), 16
    channelwise_filter_gradient.combine[(taps * channels * -(-filters // columns),)](
        parts,
        totals,
        weight,
        result,
        parts.shape[0],
        taps,
        channels,
        filters,
        ROWS=64,
        COLUMNS=columns,
        NHWC=wanted == torch.channels_last,
        SIGN=sign,
        num_warps=4,
    )
    return result
