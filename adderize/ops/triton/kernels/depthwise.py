"""Depthwise layers: forward and input gradient.

They are bound by memory. A thread has neighbouring channels of a vertical strip of positions, reads
each row under the strip once for every column of taps, and uses it for all positions that see it.
The rows of the taps are unrolled: strips and columns of taps are tuples of (ROWS, COLUMNS) tiles,
positions by channels. VECTOR divides the channels; STRIDE and DILATION are those of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.filter_gradient import store_tile
from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    first_tap,
    locate_in_image,
    slope,
    unravel,
)


@triton.jit
def tile_of_strips(program, strips, width, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile's image (int64), strips, columns, whether these are real, and channels."""
    column_tile, program = unravel(program, tl.cdiv(channels, COLUMNS))
    image, strip, column, live = locate_in_image(program, strips, width, ROWS)
    return image, strip, column, live, column_tile * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def within(at, size):
    """Whether 0 <= at < size, in one comparison."""
    return at.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([ROWS, COLUMNS], tl.float32),)
    return tiles


@triton.jit
def replaced(tiles, INDEX: tl.constexpr, tile, COUNT: tl.constexpr):
    result = ()
    for index in tl.static_range(COUNT):
        if index == INDEX:
            result = result + (tile,)
        else:
            result = result + (tiles[index],)
    return result


@triton.jit
def column_of_taps(w_at, mask, step, KERNEL_H: tl.constexpr):
    taps = ()
    for row in tl.static_range(KERNEL_H):
        taps = taps + (tl.load(w_at + row * step, mask=mask, other=0.0),)
    return taps


@triton.jit(do_not_specialize=GEOMETRY)
def forward(
    x_ptr,
    w_ptr,
    y_ptr,
    images,
    height,
    width,
    out_height,
    out_width,
    channels,
    filters,
    groups,
    kernel_height,
    kernel_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """Y of w (kh, kw, C), float32."""
    channels = groups // VECTOR * VECTOR
    strips = tl.cdiv(out_height, STRIP)
    image, strip, out_column, live, channel = tile_of_strips(
        tl.program_id(0), strips, out_width, channels, ROWS, COLUMNS
    )
    real = channel < channels
    top, left = strip * (STRIP * STRIDE) - padding_h, out_column * stride_w - padding_w
    x_row = ((image * height + top) * width + left) * channels
    x_at = x_ptr + x_row[:, None] + channel[None, :]
    total = zeros(STRIP, ROWS, COLUMNS)
    for tap_w in range(kernel_width):
        step = kernel_width * channels
        w = column_of_taps(w_ptr + tap_w * channels + channel, real, step, KERNEL_H)
        inside = (live & within(left + tap_w * dilation_w, width))[:, None] & real[None, :]
        for row in tl.static_range((STRIP - 1) * STRIDE + (KERNEL_H - 1) * DILATION + 1):
            offset = (row * width + tap_w * dilation_w) * channels.to(tl.int64)
            mask = inside & within(top + row, height)[:, None]
            x = tl.load(x_at + offset, mask=mask, other=0.0).to(tl.float32)
            for r in tl.static_range(STRIP):
                for tap_h in tl.static_range(KERNEL_H):
                    if r * STRIDE + tap_h * DILATION == row:
                        new = total[r] + tl.abs(x - w[tap_h][None, :])
                        total = replaced(total, r, new, STRIP)
    for r in tl.static_range(STRIP):
        out_row = strip * STRIP + r
        pixel, pixels = out_row * out_width + out_column, out_height * out_width
        mask = (live & (out_row < out_height))[:, None] & real[None, :]
        store_tile(y_ptr, -total[r], image, pixel, channel, mask, pixels, channels, OUT_NHWC)


@triton.jit(do_not_specialize=[*GEOMETRY, "period_w"])
def input_gradient(
    g_ptr,
    x_ptr,
    w_ptr,
    dx_ptr,
    images,
    height,
    width,
    out_height,
    out_width,
    channels,
    filters,
    groups,
    kernel_height,
    kernel_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    period_w,
    KERNEL_H: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    OUT_NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """dX of w (kh, kw, C); STRIDE divides STRIP.

    A tile's columns are of one residue modulo the stride: they see the same taps, which lie a
    period apart. The first row of a strip is a multiple of the stride from the padding's first: its
    taps are known. clip(d, -1, 1) = 2 sat(d / 2 + 1/2) - 1, with F and x relative to a value of F.
    """
    BEFORE: tl.constexpr = (KERNEL_H - 1) * DILATION // STRIDE
    channels = groups // VECTOR * VECTOR
    residue, program = unravel(tl.program_id(0), stride_w)
    strips = tl.cdiv(height + padding_h % STRIDE, STRIP)
    image, strip, column, live, channel = tile_of_strips(
        program, strips, tl.cdiv(width, stride_w), channels, ROWS, COLUMNS
    )
    real = channel < channels
    column = column * stride_w + residue
    real_columns = (live & (column < width))[:, None] & real[None, :]
    first_w = first_tap((residue + padding_w) % stride_w, stride_w, dilation_w, kernel_width)
    out_column = (column + padding_w - first_w * dilation_w) // stride_w
    step_w = period_w * dilation_w // stride_w
    top, out_top = strip * STRIP - padding_h % STRIDE, strip * (STRIP // STRIDE)
    out_top += padding_h // STRIDE - BEFORE

    centre = tl.load(w_ptr + channel, mask=real, other=0.0)
    centre = tl.zeros_like(centre) if SIGN else tl.clamp(centre, -65504.0, 65504.0)
    scale: tl.constexpr = 1.0 if SIGN else 0.5
    shift: tl.constexpr = 0.0 if SIGN else 0.5
    x = ()
    for r in tl.static_range(STRIP):
        mask = real_columns & within(top + r, height)[:, None]
        at = ((image * height + top + r) * width + column) * channels
        pixels = tl.load(x_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0)
        x = x + ((pixels.to(tl.float32) - centre[None, :]) * scale,)

    least = tl.zeros([ROWS, COLUMNS], tl.float32)
    g_row = ((image * out_height + out_top) * out_width + out_column) * channels
    g_at = g_ptr + g_row[:, None] + channel[None, :]
    total = zeros(STRIP, ROWS, COLUMNS)
    for back in range(tl.cdiv(tl.maximum(kernel_width - first_w, 0), period_w)):
        w_at = w_ptr + (first_w + back * period_w) * channels + channel
        w = column_of_taps(w_at, real, kernel_width * channels, KERNEL_H)
        inside = real_columns & within(out_column - back * step_w, out_width)[:, None]
        for tap_h in tl.static_range(KERNEL_H):
            least = tl.minimum(least, w[tap_h][None, :], propagate_nan=tl.PropagateNan.ALL)
        for row in tl.static_range(BEFORE + (STRIP - 1) // STRIDE + 1):
            offset = (row * out_width - back * step_w) * channels.to(tl.int64)
            mask = inside & within(out_top + row, out_height)[:, None]
            g = tl.load(g_at + offset, mask=mask, other=0.0)
            for r in tl.static_range(STRIP):
                for tap_h in tl.static_range(KERNEL_H):
                    if r - tap_h * DILATION == (row - BEFORE) * STRIDE:
                        tap = ((w[tap_h] - centre) * scale + shift)[None, :]
                        clipped = tl.fma(slope(tap - x[r], SIGN), 2.0, -1.0)
                        total = replaced(total, r, tl.fma(g, clipped, total[r]), STRIP)
    for r in tl.static_range(STRIP):
        mask = real_columns & within(top + r, height)[:, None]
        result = tl.where(x[r] == x[r], total[r], x[r]) + tl.where(least == least, 0.0, least)
        pixel, size = (top + r) * width + column, height * width
        store_tile(dx_ptr, result, image, pixel, channel, mask, size, channels, OUT_NHWC)
