"""Filter gradient of gradient="sign": the sum of g * sgn(x - F) over the positions.

Tiles of one tap's filters by channels; the loop runs over four positions at a time. As in the input
gradient sgn(d) = 2 sat(2^127 d + 1/2) - 1, with minus the sum of g added at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    four_columns,
    slope,
    spread_columns,
    spread_rows,
    under_tap,
    unravel,
)


@triton.jit(do_not_specialize=[*GEOMETRY, "splits", "dw_split"])
def dense(
    g_ptr,
    x_ptr,
    w_ptr,
    dw_ptr,
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
    dw_split,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_THREADS: tl.constexpr,
    COLUMN_THREADS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dF of w (Cout, kh, kw, Cin/groups) as (splits, Cout, kh, kw, Cin/groups), float32."""
    ROW_REGISTERS: tl.constexpr = ROWS // ROW_THREADS
    COLUMN_REGISTERS: tl.constexpr = COLUMNS // COLUMN_THREADS
    column_tiles, row_tiles = tl.cdiv(channels, COLUMNS), tl.cdiv(filters, ROWS)
    taps = kernel_height * kernel_width
    # A program is a part of the sums, a group, a tap, a tile of filters and one of channels.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    row_tile, program = unravel(program, row_tiles)
    tap, program = unravel(program, taps)
    group, split = unravel(program, groups)

    filter = row_tile * ROWS + tl.arange(0, ROWS)
    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    w_row = ((group * filters + filter).to(tl.int64) * taps + tap) * channels
    w_row = spread_rows(w_row, ROW_REGISTERS, ROW_THREADS)
    at = w_row + spread_columns(channel, COLUMN_REGISTERS, COLUMN_THREADS)
    mask = spread_rows(filter < filters, ROW_REGISTERS, ROW_THREADS)
    mask &= spread_columns(channel < channels, COLUMN_REGISTERS, COLUMN_THREADS)
    w = tl.load(w_ptr + at, mask=mask, other=0.0)

    steps = tl.cdiv(images.to(tl.int64) * (out_height * out_width), 4)
    start, stop = steps * split // splits, steps * (split + 1) // splits
    down = tap // kernel_width * dilation_h - padding_h
    right = tap % kernel_width * dilation_w - padding_w
    total = tl.zeros([ROW_REGISTERS, COLUMN_REGISTERS, ROW_THREADS, COLUMN_THREADS], tl.float32)
    g_sum = tl.zeros([ROW_REGISTERS, ROW_THREADS], tl.float32)
    for step in tl.range(start, stop, num_stages=STAGES):
        live, inside, position, pixel = under_tap(
            step * 4, images, height, width, out_height, out_width, stride_h, stride_w, down, right,
            4,
        )  # fmt: skip
        g_at = (position * (filters * groups))[None, :] + (group * filters + filter)[:, None]
        x_at = (pixel * (channels * groups))[None, :] + (group * channels + channel)[:, None]
        g = tl.load(g_ptr + g_at, mask=live[None, :] & (filter < filters)[:, None], other=0.0)
        x_mask = inside[None, :] & (channel < channels)[:, None]
        x = tl.load(x_ptr + x_at, mask=x_mask, other=0.0).to(tl.float32)
        g0, g1, g2, g3 = four_columns(g, ROW_REGISTERS, ROW_THREADS)
        x0, x1, x2, x3 = four_columns(x, COLUMN_REGISTERS, COLUMN_THREADS)
        total = tl.fma(g0[:, None, :, None], slope(x0[None, :, None, :] - w, True), total)
        total = tl.fma(g1[:, None, :, None], slope(x1[None, :, None, :] - w, True), total)
        total = tl.fma(g2[:, None, :, None], slope(x2[None, :, None, :] - w, True), total)
        total = tl.fma(g3[:, None, :, None], slope(x3[None, :, None, :] - w, True), total)
        g_sum += (g0 + g1) + (g2 + g3)
    result = total * 2 - g_sum[:, None, :, None]
    tl.store(dw_ptr + split.to(tl.int64) * dw_split + at, result, mask=mask)
