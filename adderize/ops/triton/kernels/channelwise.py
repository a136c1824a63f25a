"""Forward and input gradient of depthwise layers and of groups of a few channels.

Every thread has pixels and channels of its own, and reads what it needs from the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import GEOMETRY, locate, offsets, unravel


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
    COLUMNS: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """Y of w (kh, kw, Cin/groups, Cout), float32."""
    all_filters = groups * filters
    column_tiles = tl.cdiv(all_filters, COLUMNS)
    # A program is a tile of positions and a tile of all filters.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    first = program.to(tl.int64) * ROWS
    image, out_row, out_column = locate(first, out_height * out_width, out_width, ROWS)
    filter = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    live, real = image < images, filter < all_filters
    top = out_row * stride_h - padding_h
    left = out_column * stride_w - padding_w
    first_channel = (filter // filters * channels)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in range(kernel_height * kernel_width):
        row = top + tap // kernel_width * dilation_h
        column = left + tap % kernel_width * dilation_w
        inside = live & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        x_row = ((image * height + row) * width + column) * (channels * groups)
        for channel in range(channels):
            mask = inside[:, None] & real[None, :]
            x = tl.load(x_ptr + x_row[:, None] + (first_channel + channel), mask=mask, other=0.0)
            w_row = (tap * channels + channel).to(tl.int64) * all_filters
            w = tl.load(w_ptr + w_row + filter, mask=real, other=0.0)
            total += tl.abs(x.to(tl.float32) - w[None, :])
    pixel = out_row * out_width + out_column
    y_row, y_column = offsets(image, pixel, filter, out_height * out_width, all_filters, OUT_NHWC)
    mask = live[:, None] & real[None, :]
    tl.store(y_ptr + y_row[:, None] + y_column[None, :], -total, mask=mask)


@triton.jit(do_not_specialize=GEOMETRY)
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUT_NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """dX of w (kh, kw, Cout/groups, Cin)."""
    all_channels = groups * channels
    column_tiles = tl.cdiv(all_channels, COLUMNS)
    # A program is a tile of pixels and a tile of all channels.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    first = program.to(tl.int64) * ROWS
    image, row, column = locate(first, height * width, width, ROWS)
    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    live, real = image < images, channel < all_channels
    mask = live[:, None] & real[None, :]
    pixels, pixel = height * width, row * width + column
    x_row, x_column = offsets(image, pixel, channel, pixels, all_channels, True)
    x = tl.load(x_ptr + x_row[:, None] + x_column[None, :], mask=mask, other=0.0).to(tl.float32)
    first_filter = (channel // channels * filters)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in range(kernel_height * kernel_width):
        down = row + padding_h - tap // kernel_width * dilation_h
        right = column + padding_w - tap % kernel_width * dilation_w
        out_row, out_column = down // stride_h, right // stride_w
        seen = live & (down >= 0) & (right >= 0) & (down % stride_h == 0) & (right % stride_w == 0)
        seen &= (out_row < out_height) & (out_column < out_width)
        g_row = ((image * out_height + out_row) * out_width + out_column) * (filters * groups)
        for filter in range(filters):
            mask_g = seen[:, None] & real[None, :]
            g = tl.load(g_ptr + g_row[:, None] + (first_filter + filter), mask=mask_g, other=0.0)
            w_row = (tap * filters + filter).to(tl.int64) * all_channels
            w = tl.load(w_ptr + w_row + channel, mask=real, other=0.0)
            difference = w[None, :] - x
            if SIGN:
                total += tl.where(difference > 0, g, 0.0) - tl.where(difference < 0, g, 0.0)
            else:
                total += g * tl.clamp(difference, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    dx_row, dx_column = offsets(image, pixel, channel, pixels, all_channels, OUT_NHWC)
    tl.store(dx_ptr + dx_row[:, None] + dx_column[None, :], total, mask=mask)
