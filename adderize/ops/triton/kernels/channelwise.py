"""Groups of a few channels: forward and input gradient.

A thread has up to four neighbouring filters of one group (in the input gradient: channels) at a few
positions, and reads up to four channels of the group at once: tiles are (ROWS, GROUPS, VECTOR),
positions by vectors of neighbours. IN and OUT, vectors of what is summed over and of what results,
divide the channels and filters of a group. Nothing is unrolled: any kernel size is served.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    first_tap,
    locate_in_image,
    offsets,
    slope,
    unravel,
)


@triton.jit
def _column(tile, INDEX: tl.constexpr, COUNT: tl.constexpr):
    """One of the last dimension's elements, (ROWS, GROUPS, 1); they lie in a thread's registers.

    Reshaping hands the layout of a tile on, where indexing by None would break off: what is summed
    then lies in threads as what was loaded.
    """
    rows: tl.constexpr = tile.shape[0]
    groups: tl.constexpr = tile.shape[1]
    if COUNT == 1:
        column = tile
    elif COUNT == 2:
        first, second = tl.split(tile)
        column = first if INDEX == 0 else second
    else:
        even, odd = tl.split(tl.reshape(tile, [rows, groups, 2, 2]))
        first, second = tl.split(even if INDEX % 2 == 0 else odd)
        column = first if INDEX < 2 else second
    return tl.reshape(column, [rows, groups, 1])


@triton.jit
def neighbours(tile, per_group, GROUPS: tl.constexpr, VECTOR: tl.constexpr):
    """(GROUPS, VECTOR) numbers of neighbours among all, and the group of each vector."""
    vector = tile * GROUPS + tl.arange(0, GROUPS)
    number = (vector * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    return number, vector * VECTOR // per_group


@triton.jit
def flat(numbers):
    """(GROUPS, VECTOR) numbers, of neighbours from a multiple of VECTOR on, in one dimension.

    Memory is read and written in two dimensions, rows by numbers: along a third the compiler finds
    neither rows nor groups contiguous, and lays a warp along either. Reshaped, it has to be told.
    """
    vector: tl.constexpr = numbers.shape[1]
    numbers = tl.reshape(numbers, [numbers.shape[0] * vector])
    return tl.multiple_of(tl.max_contiguous(numbers, vector), vector)


@triton.jit
def flat_mask(real, VECTOR: tl.constexpr):
    """A mask of (GROUPS,) for all of their vectors' elements, in one dimension."""
    groups: tl.constexpr = real.shape[0]
    real = tl.reshape(tl.broadcast_to(real[:, None], [groups, VECTOR]), [groups * VECTOR])
    return tl.max_constancy(real, VECTOR)


@triton.jit
def load_vectors(at, mask, GROUPS: tl.constexpr):
    """(ROWS, GROUPS, VECTOR) of pointers to (ROWS, GROUPS * VECTOR), 0 where masked."""
    rows: tl.constexpr = at.shape[0]
    values = tl.load(at, mask=mask, other=0.0)
    return tl.reshape(values, [rows, GROUPS, at.shape[1] // GROUPS])


@triton.jit
def _store(at, tile, image, pixel, number, live, real, pixels, all_numbers, NHWC: tl.constexpr):
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1] * tile.shape[2]
    row_at, column_at = offsets(image, pixel, number, pixels, all_numbers, NHWC)
    mask = live[:, None] & real[None, :]
    tl.store(at + row_at[:, None] + column_at[None, :], tl.reshape(tile, [rows, columns]), mask)


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
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """Y of w (kh, kw, Cin/groups, Cout), float32."""
    channels, filters = channels // IN * IN, filters // OUT * OUT
    all_filters = groups * filters
    # A program is a tile of positions and a tile of all filters.
    tile, program = unravel(tl.program_id(0), tl.cdiv(all_filters, GROUPS * OUT))
    filter, group = neighbours(tile, filters, GROUPS, OUT)
    image, out_row, out_column, live = locate_in_image(program, out_height, out_width, ROWS)
    real = filter < all_filters
    top, left = out_row * stride_h - padding_h, out_column * stride_w - padding_w
    x_row = ((image * height + top) * width + left) * (channels * groups)
    x_at = x_row[:, None] + flat((group * channels)[:, None] + tl.arange(0, IN)[None, :])[None, :]
    real_x = flat_mask(group < groups, IN)[None, :]
    total = tl.zeros([ROWS, GROUPS, OUT], tl.float32)
    w_row = tl.full([], 0, tl.int64)
    for tap_h in range(kernel_height):
        row = top + tap_h * dilation_h
        inside_row = live & (row >= 0) & (row < height)
        for tap_w in range(kernel_width):
            column = left + tap_w * dilation_w
            inside = inside_row & (column >= 0) & (column < width)
            mask = inside[:, None] & real_x
            offset = (tap_h * dilation_h * width.to(tl.int64) + tap_w * dilation_w) * groups
            x_tap_ptr = x_ptr + offset * channels
            for channel in range(0, channels, IN):
                x = load_vectors(x_tap_ptr + x_at + channel, mask, GROUPS).to(tl.float32)
                for index in tl.static_range(IN):
                    w = tl.load(w_ptr + w_row + filter, mask=real, other=0.0)
                    w_row += all_filters
                    total += tl.abs(_column(x, index, IN) - w[None, :, :])
    pixel, pixels = out_row * out_width + out_column, out_height * out_width
    filter = flat(filter)
    real = filter < all_filters
    _store(y_ptr, -total, image, pixel, filter, live, real, pixels, all_filters, OUT_NHWC)


@triton.jit(do_not_specialize=[*GEOMETRY, "period_h", "period_w"])
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
    period_h,
    period_w,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    OUT_NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """dX of w (kh, kw, Cout/groups, Cin).

    A tile's pixels are of one residue modulo the stride: they see the same taps, which lie a period
    apart. clip(d, -1, 1) = 2 sat(d / 2 + 1/2) - 1, with F and x relative to a value of F.
    """
    channels, filters = channels // OUT * OUT, filters // IN * IN
    all_channels = groups * channels
    tile, program = unravel(tl.program_id(0), tl.cdiv(all_channels, GROUPS * OUT))
    residue_w, program = unravel(program, stride_w)
    residue_h, program = unravel(program, stride_h)
    channel, group = neighbours(tile, channels, GROUPS, OUT)
    image, row, column, live = locate_in_image(
        program, tl.cdiv(height, stride_h), tl.cdiv(width, stride_w), ROWS
    )
    row, column = row * stride_h + residue_h, column * stride_w + residue_w
    live = live & (row < height) & (column < width)
    real, flat_channel = channel < all_channels, flat(channel)
    flat_real = flat_channel < all_channels
    pixel = row * width + column
    x_at = ((image * height * width + pixel) * all_channels)[:, None] + flat_channel[None, :]
    x = load_vectors(x_ptr + x_at, live[:, None] & flat_real[None, :], GROUPS).to(tl.float32)
    centre = tl.load(w_ptr + channel, mask=real, other=0.0)
    centre = tl.zeros_like(centre) if SIGN else tl.clamp(centre, -65504.0, 65504.0)
    scale: tl.constexpr = 1.0 if SIGN else 0.5
    shift: tl.constexpr = 0.0 if SIGN else 0.5
    x = (x - centre[None, :, :]) * scale

    first_h = first_tap((residue_h + padding_h) % stride_h, stride_h, dilation_h, kernel_height)
    first_w = first_tap((residue_w + padding_w) % stride_w, stride_w, dilation_w, kernel_width)
    out_row = (row + padding_h - first_h * dilation_h) // stride_h
    out_column = (column + padding_w - first_w * dilation_w) // stride_w
    step_h, step_w = period_h * dilation_h // stride_h, period_w * dilation_w // stride_w
    g_row = ((image * out_height + out_row) * out_width + out_column) * (filters * groups)
    g_at = g_row[:, None] + flat((group * filters)[:, None] + tl.arange(0, IN)[None, :])[None, :]
    real_g = flat_mask(group < groups, IN)[None, :]
    total = tl.zeros([ROWS, GROUPS, OUT], tl.float32)
    g_sum = tl.zeros([ROWS, GROUPS, 1], tl.float32)
    least = tl.zeros([GROUPS, OUT], tl.float32)
    for up in range(tl.cdiv(tl.maximum(kernel_height - first_h, 0), period_h)):
        seen = out_row - up * step_h
        seen_row = live & (seen >= 0) & (seen < out_height)
        for back in range(tl.cdiv(tl.maximum(kernel_width - first_w, 0), period_w)):
            seen = out_column - back * step_w
            inside = seen_row & (seen >= 0) & (seen < out_width)
            mask_g = inside[:, None] & real_g
            offset = (up * step_h * out_width.to(tl.int64) + back * step_w) * groups
            g_tap_ptr = g_ptr - offset * filters
            tap = (first_h + up * period_h) * kernel_width + first_w + back * period_w
            w_row = tap.to(tl.int64) * (filters * all_channels)
            for filter in range(0, filters, IN):
                g = load_vectors(g_tap_ptr + g_at + filter, mask_g, GROUPS)
                for index in tl.static_range(IN):
                    w = tl.load(w_ptr + w_row + channel, mask=real, other=0.0)
                    w_row += all_channels
                    least = tl.minimum(least, w, propagate_nan=tl.PropagateNan.ALL)
                    value = _column(g, index, IN)
                    difference = ((w - centre) * scale + shift)[None, :, :] - x
                    total = tl.fma(value, slope(difference, SIGN), total)
                    g_sum += value
    total = total * 2 - g_sum + tl.where(least == least, 0.0, least)[None, :, :]
    total = tl.where(x == x, total, x)
    pixels = height * width
    _store(
        dx_ptr, total, image, pixel, flat_channel, live, flat_real, pixels, all_channels, OUT_NHWC
    )
