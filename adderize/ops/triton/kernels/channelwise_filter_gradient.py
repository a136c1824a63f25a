"""Filter gradients of depthwise layers and of small groups: parts of the sums, and the end.

    dF = sum g x - F * G,    sum g x = sum g (x - c) + c * G,    G = sum of g

A program has a part of the positions, and c is the mean of the pixels that it sees first; 0 for
depthwise layers in half precision, whose inputs have too few digits to gain from it. Parts are
those of sum g x and of G, in float64, which `combine` adds. SIGN: sums of g sgn(x - F), no G.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.channelwise import flat, flat_mask, load_vectors, neighbours
from adderize.ops.triton.kernels.depthwise import (
    column_of_taps,
    replaced,
    tile_of_strips,
    within,
    zeros,
)
from adderize.ops.triton.kernels.indexing import GEOMETRY, locate_in_image, slope, unravel


@triton.jit
def _mean(pixels, live):
    """Of the positions that exist, (ROWS, ...) of which `live` says so; 0 where not finite."""
    mean = tl.sum(pixels.to(tl.float32), 0) / tl.sum(live.to(tl.float32), 0)
    return tl.where(tl.abs(mean) < float("inf"), mean, 0.0)


@triton.jit(do_not_specialize=[*GEOMETRY, "splits"])
def depthwise(
    g_ptr,
    x_ptr,
    w_ptr,
    parts_ptr,
    totals_ptr,
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
    splits,
    KERNEL_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    SIGN: tl.constexpr,
):
    """Parts (splits, kh, kw, C) and (splits, C); a program has TAPS_W columns of taps."""
    channels = groups // VECTOR * VECTOR
    strips = tl.cdiv(out_height, STRIP)
    column_tiles = tl.cdiv(channels, COLUMNS)
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    block, split = unravel(program, tl.cdiv(kernel_width, TAPS_W))
    steps = images.to(tl.int64) * tl.cdiv(strips * out_width, ROWS)
    start = (steps * split // splits).to(tl.int32)
    stop = (steps * (split + 1) // splits).to(tl.int32)

    first_w = block * TAPS_W
    CENTRED: tl.constexpr = (not SIGN) and x_ptr.dtype.element_ty == tl.float32
    row_step, tap_step = width.to(tl.int64) * channels, dilation_w.to(tl.int64) * channels
    out_row_step = out_width.to(tl.int64) * channels
    centre = tl.zeros([COLUMNS], tl.float32)
    if CENTRED:
        image, strip, out_column, live, channel = tile_of_strips(
            start * column_tiles + column_tile, strips, out_width, channels, ROWS, COLUMNS
        )
        first_row = tl.minimum(strip * (STRIP * STRIDE), height - 1)
        first_column = tl.minimum(out_column * stride_w, width - 1)
        first = ((image * height + first_row) * width + first_column) * channels
        seen = live[:, None] & (channel < channels)[None, :]
        pixels = tl.load(x_ptr + first[:, None] + channel[None, :], mask=seen, other=0.0)
        centre = _mean(pixels, live)

    sums = zeros(TAPS_W * KERNEL_H, ROWS, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in range(start, stop):
        image, strip, out_column, live, channel = tile_of_strips(
            step * column_tiles + column_tile, strips, out_width, channels, ROWS, COLUMNS
        )
        real = channel < channels
        g = ()
        g_row = ((image * out_height + strip * STRIP) * out_width + out_column) * channels
        g_at = g_ptr + g_row[:, None] + channel[None, :]
        mask = live[:, None] & real[None, :]
        for r in tl.static_range(STRIP):
            exists = (strip * STRIP + r < out_height)[:, None]
            g = g + (tl.load(g_at, mask=mask & exists, other=0.0),)
            g_at += out_row_step
        strip_sum = g[0]
        for r in tl.static_range(1, STRIP):
            strip_sum += g[r]
        total += strip_sum.to(tl.float64)
        top = strip * (STRIP * STRIDE) - padding_h
        left = out_column * stride_w - padding_w + first_w * dilation_w
        x_row = ((image * height + top) * width + left) * channels
        x_at = x_ptr + x_row[:, None] + channel[None, :]
        for tap_w in tl.static_range(TAPS_W):
            inside = (live & within(left + tap_w * dilation_w, width))[:, None] & real[None, :]
            if SIGN:
                w_at = w_ptr + tl.minimum(first_w + tap_w, kernel_width - 1) * channels + channel
                w = column_of_taps(w_at, real, kernel_width * channels, KERNEL_H)
            x_row_at = x_at
            x_at += tap_step
            for row in tl.static_range((STRIP - 1) * STRIDE + (KERNEL_H - 1) * DILATION + 1):
                mask = inside & within(top + row, height)[:, None]
                x = tl.load(x_row_at, mask=mask, other=0.0).to(tl.float32)
                x_row_at += row_step
                difference = x - centre[None, :] if CENTRED else x
                for r in tl.static_range(STRIP):
                    for tap_h in tl.static_range(KERNEL_H):
                        if r * STRIDE + tap_h * DILATION == row:
                            if SIGN:
                                sign = slope(x - w[tap_h][None, :], True)
                                difference = tl.fma(sign, 2.0, -1.0)
                            new = tl.fma(g[r], difference, sums[tap_h * TAPS_W + tap_w])
                            sums = replaced(sums, tap_h * TAPS_W + tap_w, new, TAPS_W * KERNEL_H)

    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    real = channel < channels
    grad_sum = tl.sum(total, 0)
    if block == 0:
        tl.store(totals_ptr + split.to(tl.int64) * channels + channel, grad_sum, mask=real)
    parts_ptr += split.to(tl.int64) * (kernel_height * kernel_width * channels)
    for tap_h in tl.static_range(KERNEL_H):
        for tap_w in tl.static_range(TAPS_W):
            result = tl.sum(sums[tap_h * TAPS_W + tap_w], 0).to(tl.float64)
            if CENTRED:
                result += centre.to(tl.float64) * grad_sum
            at = (tap_h * kernel_width + first_w + tap_w) * channels + channel
            tl.store(parts_ptr + at, result, mask=real & (first_w + tap_w < kernel_width))


@triton.jit(do_not_specialize=[*GEOMETRY, "splits"])
def grouped(
    g_ptr,
    x_ptr,
    w_ptr,
    parts_ptr,
    totals_ptr,
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
    splits,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    SIGN: tl.constexpr,
):
    """Parts (splits, kh, kw, Cin/groups, Cout) and (splits, Cout), of w in that order for SIGN.

    A program has a tap, a vector of channels and a tile of filters.
    """
    channels, filters = channels // IN * IN, filters // OUT * OUT
    all_filters = groups * filters
    tile, program = unravel(tl.program_id(0), tl.cdiv(all_filters, GROUPS * OUT))
    chunk, split = unravel(program, kernel_height * kernel_width * (channels // IN))
    filter, group = neighbours(tile, filters, GROUPS, OUT)
    real, flat_filter = filter < all_filters, flat(filter)
    real_g, real_x = (flat_filter < all_filters)[None, :], flat_mask(group < groups, IN)[None, :]
    tap = chunk // (channels // IN)
    down = tap // kernel_width * dilation_h - padding_h
    right = tap % kernel_width * dilation_w - padding_w
    channel = group[:, None] * channels + chunk % (channels // IN) * IN + tl.arange(0, IN)[None, :]
    channel = flat(channel)[None, :]
    steps = images.to(tl.int64) * tl.cdiv(out_height * out_width, ROWS)
    start = (steps * split // splits).to(tl.int32)
    stop = (steps * (split + 1) // splits).to(tl.int32)

    w_at = (chunk * IN + tl.arange(0, IN))[None, :, None] * all_filters + filter[:, None, :]
    if SIGN:
        w = tl.load(w_ptr + w_at, mask=real[:, None, :], other=0.0)
    centre = tl.zeros([GROUPS, IN], tl.float32)
    if not SIGN:
        image, out_row, out_column, live = locate_in_image(start, out_height, out_width, ROWS)
        row = tl.minimum(out_row * stride_h, height - 1)
        column = tl.minimum(out_column * stride_w, width - 1)
        first = ((image * height + row) * width + column) * (channels * groups)
        pixels = load_vectors(x_ptr + first[:, None] + channel, live[:, None] & real_x, GROUPS)
        centre = _mean(pixels, live)
    total = tl.zeros([ROWS, GROUPS, IN, OUT], tl.float32)
    g_sum = tl.zeros([ROWS, GROUPS, OUT], tl.float64)
    for step in range(start, stop):
        image, out_row, out_column, live = locate_in_image(step, out_height, out_width, ROWS)
        row, column = out_row * stride_h + down, out_column * stride_w + right
        inside = live & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        g_at = ((image * out_height + out_row) * out_width + out_column) * all_filters
        x_at = ((image * height + row) * width + column) * (channels * groups)
        g_at = g_ptr + g_at[:, None] + flat_filter[None, :]
        g = load_vectors(g_at, live[:, None] & real_g, GROUPS)
        x_at = x_ptr + x_at[:, None] + channel
        x = load_vectors(x_at, inside[:, None] & real_x, GROUPS).to(tl.float32)
        if SIGN:
            difference = tl.reshape(x, [ROWS, GROUPS, IN, 1]) - w[None, :, :, :]
            sign = tl.fma(slope(difference, True), 2.0, -1.0)
            total = tl.fma(tl.reshape(g, [ROWS, GROUPS, 1, OUT]), sign, total)
        else:
            difference = tl.reshape(x - centre[None, :, :], [ROWS, GROUPS, IN, 1])
            total = tl.fma(tl.reshape(g, [ROWS, GROUPS, 1, OUT]), difference, total)
            g_sum += g.to(tl.float64)
    result = tl.sum(total, 0).to(tl.float64)
    if not SIGN:
        totals = tl.sum(g_sum, 0)
        result += centre.to(tl.float64)[:, :, None] * totals[:, None, :]
        if chunk == 0:
            tl.store(totals_ptr + split.to(tl.int64) * all_filters + filter, totals, mask=real)
    parts_ptr += split.to(tl.int64) * (kernel_height * kernel_width * channels * all_filters)
    tl.store(parts_ptr + w_at, result, mask=real[:, None, :])


@triton.jit(do_not_specialize=["splits", "taps", "channels", "filters"])
def combine(
    parts_ptr,
    totals_ptr,
    w_ptr,
    dw_ptr,
    splits,
    taps,
    channels,
    filters,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """dF of parts (splits, taps, channels, filters) and w in dF's order; SIGN: without F * G."""
    tile, row = unravel(tl.program_id(0), tl.cdiv(filters, COLUMNS))
    channel, tap = row % channels, row // channels
    filter = tile * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    grad_sum = tl.zeros([ROWS, COLUMNS], tl.float64)
    for first in range(0, splits, ROWS):
        split = (first + tl.arange(0, ROWS))[:, None]
        mask = (split < splits) & (filter < filters)[None, :]
        at = (split.to(tl.int64) * (taps * channels) + row) * filters + filter[None, :]
        total += tl.load(parts_ptr + at, mask=mask, other=0.0)
        if not SIGN:
            at = split * filters + filter[None, :]
            grad_sum += tl.load(totals_ptr + at, mask=mask, other=0.0)
    at = filter.to(tl.int64) * (channels * taps)
    at += tap * channels + channel if NHWC else channel * taps + tap
    result = tl.sum(total, 0)
    w = tl.load(w_ptr + at, mask=filter < filters, other=0.0)
    if SIGN:
        # As for torch.sign: the sign of NaN is 0.
        result = tl.where(w == w, result, 0.0)
    else:
        result -= w.to(tl.float64) * tl.sum(grad_sum, 0)
    tl.store(dw_ptr + at, result.to(tl.float32), mask=filter < filters)
