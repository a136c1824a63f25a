"""What the full-precision filter gradient needs around the convolution's: three passes and an end.

    dF = wgrad(X - c, g) - (F - c) * G,    G = sum of g,    c: near the mean of X, one per channel

with X - c taken over the padded image, so that a tap in the padding counts as 0 - c.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import locate, unravel


@triton.jit
def load_tile(at, image, pixel, channel, mask, pixels, channels, NHWC: tl.constexpr):
    """A (positions, channels) tile of a dense image, read along its memory."""
    if NHWC:
        rows = (image * pixels + pixel) * channels
        return tl.load(at + rows[:, None] + channel[None, :], mask=mask, other=0.0)
    else:
        rows = channel[:, None] * pixels.to(tl.int64)
        columns = image * (channels * pixels.to(tl.int64)) + pixel
        return tl.trans(tl.load(at + rows + columns[None, :], mask=tl.trans(mask), other=0.0))


@triton.jit
def store_tile(at, tile, image, pixel, channel, mask, pixels, channels, NHWC: tl.constexpr):
    """A (positions, channels) tile into a dense image, written along its memory."""
    if NHWC:
        rows = (image * pixels + pixel) * channels
        tl.store(at + rows[:, None] + channel[None, :], tile, mask=mask)
    else:
        rows = channel[:, None] * pixels.to(tl.int64)
        columns = image * (channels * pixels.to(tl.int64)) + pixel
        tl.store(at + rows + columns[None, :], tl.trans(tile), mask=tl.trans(mask))


@triton.jit(do_not_specialize=["images", "pixels", "channels", "splits"])
def totals(
    g_ptr,
    copy_ptr,
    parts_ptr,
    images,
    pixels,
    channels,
    splits,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    IN_NHWC: tl.constexpr,
    OUT_NHWC: tl.constexpr,
    COPY: tl.constexpr,
):
    """Sums of g per channel as (splits, channels), float64; COPY: g in another dtype or order.

    VECTOR divides the channels. The sums are those of the copy, where there is one.
    """
    channels = channels // VECTOR * VECTOR
    column_tile, split = unravel(tl.program_id(0), tl.cdiv(channels, COLUMNS))
    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    steps = tl.cdiv(images.to(tl.int64) * pixels, ROWS)
    start, stop = steps * split // splits, steps * (split + 1) // splits
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in range(start, stop):
        image, _, pixel = locate(step * ROWS, pixels, pixels, ROWS)
        mask = (image < images)[:, None] & (channel < channels)[None, :]
        g = load_tile(g_ptr, image, pixel, channel, mask, pixels, channels, IN_NHWC)
        if COPY:
            g = g.to(copy_ptr.dtype.element_ty)
            store_tile(copy_ptr, g, image, pixel, channel, mask, pixels, channels, OUT_NHWC)
        total += g.to(tl.float64)
    parts_ptr += split.to(tl.int64) * channels
    tl.store(parts_ptr + channel, tl.sum(total, 0), mask=channel < channels)


@triton.jit(do_not_specialize=["images", "pixels", "channels"])
def centres(
    x_ptr,
    centre_ptr,
    images,
    pixels,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IN_NHWC: tl.constexpr,
):
    """Means per channel over ROWS positions; 0 where that is not finite."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    positions = images.to(tl.int64) * pixels
    # Multiples of the golden ratio fall evenly into [0, 1), whatever the period of the rows.
    fraction = ((tl.arange(0, ROWS).to(tl.int64) * 2654435769) & 0xFFFFFFFF) >> 4
    position = (fraction * positions) >> 28
    image, pixel = position // pixels, (position % pixels).to(tl.int32)
    mask = (position < positions)[:, None] & (channel < channels)[None, :]
    x = load_tile(x_ptr, image, pixel, channel, mask, pixels, channels, IN_NHWC)
    mean = tl.sum(x / ROWS, 0)
    mean = tl.where(tl.abs(mean) < float("inf"), mean, 0.0)
    tl.store(centre_ptr + channel, mean, mask=channel < channels)


@triton.jit(do_not_specialize=["images", "height", "width", "channels", "padding_h", "padding_w"])
def centred(
    x_ptr,
    centre_ptr,
    padded_ptr,
    images,
    height,
    width,
    channels,
    padding_h,
    padding_w,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    IN_NHWC: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """X - c with its padding, which holds 0 - c; VECTOR divides the channels."""
    channels = channels // VECTOR * VECTOR
    column_tile, program = unravel(tl.program_id(0), tl.cdiv(channels, COLUMNS))
    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    padded_width = width + 2 * padding_w
    padded_pixels = (height + 2 * padding_h) * padded_width
    image, row, column = locate(program.to(tl.int64) * ROWS, padded_pixels, padded_width, ROWS)
    live, real = (image < images)[:, None], (channel < channels)[None, :]
    pixel = row * padded_width + column
    row, column = row - padding_h, column - padding_w
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    mask = live & real & inside[:, None]
    x = load_tile(
        x_ptr, image, row * width + column, channel, mask, height * width, channels, IN_NHWC
    )
    centre = tl.load(centre_ptr + channel, mask=channel < channels, other=0.0)
    x = x - centre[None, :]
    store_tile(padded_ptr, x, image, pixel, channel, live & real, padded_pixels, channels, OUT_NHWC)


@triton.jit(do_not_specialize=["splits", "filters", "channels", "taps", "groups"])
def finish(
    convolution_ptr,
    w_ptr,
    centre_ptr,
    parts_ptr,
    dw_ptr,
    splits,
    filters,
    channels,
    taps,
    groups,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    CENTRED: tl.constexpr,
    CONVOLUTION_NHWC: tl.constexpr,
    W_NHWC: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """dF of w (filters of all groups, channels of one, taps), from wgrad and the parts of G."""
    block, filter = unravel(tl.program_id(0), tl.cdiv(channels * taps, BLOCK))
    split = tl.arange(0, SPLITS)
    parts = tl.load(parts_ptr + split * filters + filter, mask=split < splits, other=0.0)
    total = tl.sum(parts, 0).to(tl.float32)
    at = block * BLOCK + tl.arange(0, BLOCK)
    mask = at < channels * taps
    if OUT_NHWC:
        channel, tap = at % channels, at // channels
    else:
        channel, tap = at // taps, at % taps
    nhwc, nchw = tap * channels + channel, channel * taps + tap
    first = filter.to(tl.int64) * (channels * taps)
    result_at = first + (nhwc if CONVOLUTION_NHWC else nchw)
    result = tl.load(convolution_ptr + result_at, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + first + (nhwc if W_NHWC else nchw), mask=mask, other=0.0).to(tl.float32)
    if CENTRED:
        group = filter // (filters // groups)
        w -= tl.load(centre_ptr + group * channels + channel, mask=mask, other=0.0)
    tl.store(dw_ptr + first + at, result - w * total, mask=mask)
