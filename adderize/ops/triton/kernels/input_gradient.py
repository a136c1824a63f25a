"""Input gradient as a gather: tiles of input pixels by channels, summed over taps and filters.

The pixels of one residue modulo the stride see the same taps: a tile holds pixels of one residue.
With x' = (x - c) / 2 held in registers and w' = (F - c) / 2 + 1/2,

    clip(F - x, -1, 1) = 2 sat(w' - x') - 1,    sat(d) = min(max(d, 0), 1),

so a pair costs FADD.SAT and FFMA. The total starts at minus half the sum of g that the pixel sees,
and has only to be doubled at the end. The centre c of a channel's filters keeps w' precise where
both lie far from zero. sgn(F - x) = 2 sat(2^127 (F - x) + 1/2) - 1 takes one more instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    first_tap,
    four_columns,
    locate,
    offsets,
    slope,
    spread_columns,
    spread_rows,
    tile_pointers,
    unravel,
)


@triton.jit
def _add(total, g, w, x, SIGN: tl.constexpr):
    return tl.fma(g[:, None, :, None], slope(w[None, :, None, :] - x, SIGN), total)


@triton.jit
def _add_four(total, g, w, x, SIGN: tl.constexpr):
    g0, g1, g2, g3 = four_columns(g, total.shape[0], total.shape[2])
    w0, w1, w2, w3 = four_columns(w, total.shape[1], total.shape[3])
    total = _add(total, g0, w0, x, SIGN)
    total = _add(total, g1, w1, x, SIGN)
    total = _add(total, g2, w2, x, SIGN)
    return _add(total, g3, w3, x, SIGN)


@triton.jit(do_not_specialize=[*GEOMETRY, "period_h", "period_w", "splits", "dx_split"])
def input_gradient(
    g_ptr,
    g_sum_ptr,
    x_ptr,
    w_ptr,
    centre_ptr,
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
    splits,
    dx_split,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_THREADS: tl.constexpr,
    COLUMN_THREADS: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    OUT_NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """dX; partial sums where splits > 1.

    g and x are N,H,W,C, g_sum is the sum of g over a group's filters (N, OH, OW, groups), w is w'
    as (groups, kh, kw, Cin/groups, Cout/groups), and the centre c is (Cin,). The taps that a pixel
    sees lie a period = stride / gcd(stride, dilation) apart. A turn of the loop sums CHUNK filters,
    4 or 8. EVEN: those of a group are a multiple of it.
    """
    ROW_REGISTERS: tl.constexpr = ROWS // ROW_THREADS
    COLUMN_REGISTERS: tl.constexpr = COLUMNS // COLUMN_THREADS
    UNIT: tl.constexpr = CHUNK if EVEN else 1
    column_tiles = tl.cdiv(channels, COLUMNS)
    # A program is a tile of the pixels of one residue, a part of the sums, a group and a tile of
    # its channels.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    group, program = unravel(program, groups)
    split, program = unravel(program, splits)
    residues_w = tl.minimum(stride_w, width)
    residue, program = unravel(program, tl.minimum(stride_h, height) * residues_w)
    residue_w, residue_h = unravel(residue, residues_w)
    first = program.to(tl.int64) * ROWS

    rows = (height - residue_h + stride_h - 1) // stride_h
    row_pixels = (width - residue_w + stride_w - 1) // stride_w
    image, row, column = locate(first, rows * row_pixels, row_pixels, ROWS)
    live = image < images
    row = row * stride_h + residue_h
    column = column * stride_w + residue_w

    first_h = first_tap((residue_h + padding_h) % stride_h, stride_h, dilation_h, kernel_height)
    first_w = first_tap((residue_w + padding_w) % stride_w, stride_w, dilation_w, kernel_width)
    taps_h = tl.cdiv(tl.maximum(kernel_height - first_h, 0), period_h)
    taps_w = tl.cdiv(tl.maximum(kernel_width - first_w, 0), period_w)
    out_row = (row + padding_h - first_h * dilation_h) // stride_h
    out_column = (column + padding_w - first_w * dilation_w) // stride_w
    step_h = period_h * dilation_h // stride_h
    step_w = period_w * dilation_w // stride_w
    g_pixel = (image * out_height + out_row) * out_width + out_column

    seen = tl.zeros([ROWS], tl.float32)
    if split == 0:
        for tap in range(taps_h * taps_w):
            up = tap // taps_w * step_h
            back = tap % taps_w * step_w
            inside = live & (out_row >= up) & (out_row - up < out_height)
            inside &= (out_column >= back) & (out_column - back < out_width)
            at = (g_pixel - up.to(tl.int64) * out_width - back) * groups + group
            seen += tl.load(g_sum_ptr + at, mask=inside, other=0.0)
    start_value = spread_rows(seen, ROW_REGISTERS, ROW_THREADS) * -0.5

    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    real = channel < channels
    x_channel = group * channels + channel
    pixels, all_channels = height * width, (channels * groups).to(tl.int64)
    pixel = row * width + column
    first_channel = group * channels + column_tile * COLUMNS
    x_row, x_first = offsets(image, pixel, first_channel, pixels, all_channels, True)
    x_at = tile_pointers(
        x_ptr, x_row + x_first, 1, ROW_REGISTERS, ROW_THREADS, COLUMN_REGISTERS, COLUMN_THREADS
    )
    mask = spread_rows(live, ROW_REGISTERS, ROW_THREADS)
    mask &= spread_columns(real, COLUMN_REGISTERS, COLUMN_THREADS)
    x = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
    centre = tl.load(centre_ptr + x_channel, mask=real, other=0.0)
    x -= spread_columns(centre, COLUMN_REGISTERS, COLUMN_THREADS)
    if not SIGN:
        x *= 0.5

    g_pixel_size = (filters * groups).to(tl.int64)
    g_row = g_pixel * g_pixel_size + group * filters
    tap_size = channels.to(tl.int64) * filters
    w_row = group * kernel_height * kernel_width * tap_size
    # Beyond the last channel different ones are read, as in the forward pass.
    w_row += (channel % channels).to(tl.int64) * filters
    if EVEN:
        g_row = tl.multiple_of(g_row, CHUNK)
        w_row = tl.multiple_of(w_row, CHUNK)
    four = tl.arange(0, 4)
    g_row_ptr = g_ptr + g_row[:, None] + four[None, :]
    w_row_ptr = w_ptr + w_row[:, None] + four[None, :]

    chunks = tl.cdiv(filters, CHUNK)
    steps = (taps_h * taps_w * chunks).to(tl.int64)
    start = (steps * split // splits).to(tl.int32)
    stop = (steps * (split + 1) // splits).to(tl.int32)
    tap = start // chunks
    filter = (start % chunks) * CHUNK
    tap_h = tap // tl.maximum(taps_w, 1)
    tap_w = tap % tl.maximum(taps_w, 1)
    up = tap_h * step_h
    back = tap_w * step_w
    # Offsets are carried in units of what they are multiples of, which keeps loads vectors.
    g_offset = filter - (up * out_width.to(tl.int64) + back) * g_pixel_size
    w_tap = (first_h + tap_h * period_h) * kernel_width + first_w + tap_w * period_w
    g_offset = g_offset // UNIT
    w_offset = (w_tap * tap_size + filter) // UNIT
    back_end = taps_w * step_w
    next_tap_g = (-step_w * g_pixel_size - filters) // UNIT
    next_row_g = (back_end - step_h * out_width.to(tl.int64)) * g_pixel_size // UNIT
    next_tap_w = (period_w * tap_size - filters) // UNIT
    next_row_w = (period_h * kernel_width - taps_w * period_w) * tap_size // UNIT
    total = tl.zeros([ROW_REGISTERS, COLUMN_REGISTERS, ROW_THREADS, COLUMN_THREADS], tl.float32)
    total += start_value
    for _ in tl.range(start, stop, num_stages=STAGES):
        inside_rows = (out_row - up).to(tl.uint32, bitcast=True) < out_height
        inside_columns = (out_column - back).to(tl.uint32, bitcast=True) < out_width
        inside = (live & inside_rows & inside_columns)[:, None]
        g_at = g_row_ptr + g_offset * UNIT
        w_at = w_row_ptr + w_offset * UNIT
        if EVEN:
            g = tl.load(g_at, mask=inside, other=0.0)
            w = tl.load(w_at)
            if CHUNK == 8:
                g_more = tl.load(g_at + 4, mask=inside, other=0.0)
                w_more = tl.load(w_at + 4)
        else:
            exists = (filter + four < filters)[None, :]
            g = tl.load(g_at, mask=inside & exists, other=0.0)
            w = tl.load(w_at, mask=exists, other=0.0)
        total = _add_four(total, g, w, x, SIGN)
        if CHUNK == 8:
            total = _add_four(total, g_more, w_more, x, SIGN)
        step = 1 if EVEN else tl.minimum(filters - filter, CHUNK)
        filter += CHUNK
        last_filter = filter >= filters
        filter = tl.where(last_filter, 0, filter)
        back += tl.where(last_filter, step_w, 0)
        last_tap = back >= back_end
        back = tl.where(last_tap, 0, back)
        up += tl.where(last_tap, step_h, 0)
        g_offset += step + tl.where(last_filter, next_tap_g, 0) + tl.where(last_tap, next_row_g, 0)
        w_offset += step + tl.where(last_filter, next_tap_w, 0) + tl.where(last_tap, next_row_w, 0)

    total = tl.where(x == x, total * 2, x)
    dx_row, dx_first = offsets(image, pixel, first_channel, pixels, all_channels, OUT_NHWC)
    dx_step = 1 if OUT_NHWC else pixels.to(tl.int64)
    dx_at = tile_pointers(
        dx_ptr + split.to(tl.int64) * dx_split, dx_row + dx_first, dx_step,
        ROW_REGISTERS, ROW_THREADS, COLUMN_REGISTERS, COLUMN_THREADS,
    )  # fmt: skip
    tl.store(dx_at, total, mask=mask)
