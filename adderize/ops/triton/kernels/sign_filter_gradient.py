"""Filter gradient of gradient="sign": the sum of g * sgn(x - F) over the positions.

Tiles of filters by the values of a filter (taps and channels, as they lie in memory); the loop runs
over POSITIONS positions at a time, which share the arithmetic of where the pixels lie: nothing is
divided in the loop. As in the input gradient sgn(d) = 2 sat(2^127 d + 1/2) - 1: the total starts at
minus half the sum of g and is doubled at the end, and a pair costs FADD, FFMA.SAT and FFMA.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    advance,
    locate_each,
    slope,
    spread_columns,
    spread_rows,
    tile_pointers,
    unravel,
)

# A thread has four neighbouring rows and columns of each run, which it loads at once.
_VECTOR = tl.constexpr(4)


@triton.jit
def _turned(tile, POSITIONS: tl.constexpr, REGISTERS: tl.constexpr, THREADS: tl.constexpr):
    """A tile of (positions * units, values of a unit) as (REGISTERS, THREADS, positions)."""
    tile = tl.reshape(tile, [POSITIONS, REGISTERS // 4, THREADS, 4])
    return tl.reshape(tl.permute(tile, 1, 3, 2, 0), [REGISTERS, THREADS, POSITIONS])


@triton.jit
def _add(total, g, x, w):
    """The last dimension of g (rows) and x (columns), position by position, added to the total."""
    POSITIONS: tl.constexpr = g.shape[2]
    if POSITIONS == 1:
        g, x = tl.reshape(g, g.shape[:2]), tl.reshape(x, x.shape[:2])
        return tl.fma(g[:, None, :, None], slope(x[None, :, None, :] - w, True), total)
    else:
        g0, g1 = tl.split(tl.reshape(g, [g.shape[0], g.shape[1], POSITIONS // 2, 2]))
        x0, x1 = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], POSITIONS // 2, 2]))
        return _add(_add(total, g0, x0, w), g1, x1, w)


@triton.jit(do_not_specialize=[*GEOMETRY, "splits", "dw_split"])
def dense(
    g_ptr,
    g_sum_ptr,
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
    POSITIONS: tl.constexpr,
):
    """dF of w (Cout, kh, kw, Cin/groups) as (splits, Cout, kh, kw, Cin/groups), float32.

    g and x are N,H,W,C, g_sum is the sum of g over all positions (Cout,). The channels and the
    filters of a group are multiples of 4.
    """
    ROW_REGISTERS: tl.constexpr = ROWS // ROW_THREADS
    COLUMN_REGISTERS: tl.constexpr = COLUMNS // COLUMN_THREADS
    # Loads are of whole units; offsets are counted in them, which keeps loads vectors.
    UNIT: tl.constexpr = 4
    ROW_UNITS: tl.constexpr = ROWS // UNIT
    COLUMN_UNITS: tl.constexpr = COLUMNS // UNIT
    values = kernel_height * kernel_width * channels
    column_tiles, row_tiles = tl.cdiv(values, COLUMNS), tl.cdiv(filters, ROWS)
    # A program is a part of the sums, a group, a tile of its filters and one of their values.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    row_tile, program = unravel(program, row_tiles)
    group, split = unravel(program, groups)

    filter = row_tile * ROWS + tl.arange(0, ROWS)
    w_row = (group * filters + filter).to(tl.int64) * values + column_tile * COLUMNS
    w_at = tile_pointers(
        w_ptr, w_row, 1, ROW_REGISTERS, ROW_THREADS, COLUMN_REGISTERS, COLUMN_THREADS, _VECTOR
    )
    value = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    mask = spread_rows(filter < filters, ROW_REGISTERS, ROW_THREADS, _VECTOR)
    mask &= spread_columns(value < values, COLUMN_REGISTERS, COLUMN_THREADS, _VECTOR)
    w = tl.load(w_at, mask=mask, other=0.0)

    # A turn reads so many units of g and of x. Each has a position, and a row or a column: its tap
    # adds to the position what it adds to all.
    g_unit, x_unit = tl.arange(0, POSITIONS * ROW_UNITS), tl.arange(0, POSITIONS * COLUMN_UNITS)
    unit = tl.arange(0, UNIT)[None, :]
    row = row_tile * ROW_UNITS + g_unit % ROW_UNITS
    row_exists = row < filters // UNIT
    g_units = (filters * groups // UNIT).to(tl.int64)
    g_position = g_unit // ROW_UNITS
    g_at = g_position * g_units + group * (filters // UNIT) + row
    g_at = g_ptr + g_at[:, None] * UNIT + unit

    column = (column_tile * COLUMN_UNITS + x_unit % COLUMN_UNITS) * UNIT
    tap, channel = column // channels, column % channels
    down = tap // kernel_width * dilation_h - padding_h
    right = tap % kernel_width * dilation_w - padding_w
    pixel_units = (channels * groups // UNIT).to(tl.int64)
    tap_at = (down.to(tl.int64) * width + right) * pixel_units
    tap_at += (group * channels + channel) // UNIT
    # A column that does not exist sees no row of any image.
    down = tl.where(column < values, down, -(2**31))

    pixels = height.to(tl.int64) * width
    per_image = out_height * out_width
    steps = tl.cdiv(images.to(tl.int64) * per_image, POSITIONS)
    start = (steps * split // splits).to(tl.int32)
    stop = (steps * (split + 1) // splits).to(tl.int32)
    # Where the positions of x lie, and how far the next turn's are.
    first = start.to(tl.int64) * POSITIONS
    image, out_row, out_column = locate_each(first, x_unit // COLUMN_UNITS, per_image, out_width)
    image = image.to(tl.int32)
    images_on, rows_on = POSITIONS // per_image, POSITIONS % per_image // out_width
    columns_on = POSITIONS % per_image % out_width
    positions = images.to(tl.int64) * per_image

    seen = tl.zeros([ROWS], tl.float32)
    if split == 0:
        seen = tl.load(g_sum_ptr + group * filters + filter, mask=filter < filters, other=0.0)
    total = tl.zeros([ROW_REGISTERS, COLUMN_REGISTERS, ROW_THREADS, COLUMN_THREADS], tl.float32)
    total += spread_rows(seen, ROW_REGISTERS, ROW_THREADS, _VECTOR) * -0.5
    for _ in tl.range(start, stop, num_stages=STAGES):
        g_mask = row_exists & (first + g_position < positions)
        g = tl.load(g_at + first * g_units * UNIT, mask=g_mask[:, None], other=0.0)
        in_row, in_column = out_row * stride_h, out_column * stride_w
        inside = (in_row + down).to(tl.uint32, bitcast=True) < height
        inside &= (in_column + right).to(tl.uint32, bitcast=True) < width
        inside &= image < images
        # Counted without the padding that the taps subtract: up to 32 bits, unsigned.
        pixel = (in_row * width + in_column).to(tl.uint32, bitcast=True)
        x_at = (image * pixels + pixel.to(tl.int64)) * pixel_units + tap_at
        x = tl.load(x_ptr + x_at[:, None] * UNIT + unit, mask=inside[:, None], other=0.0)
        g = _turned(g, POSITIONS, ROW_REGISTERS, ROW_THREADS)
        x = _turned(x.to(tl.float32), POSITIONS, COLUMN_REGISTERS, COLUMN_THREADS)
        total = _add(total, g, x, w)
        first += POSITIONS
        image, out_row, out_column = advance(
            image, out_row, out_column, images_on, rows_on, columns_on, out_height, out_width
        )
    dw_at = tile_pointers(
        dw_ptr + split.to(tl.int64) * dw_split, w_row, 1,
        ROW_REGISTERS, ROW_THREADS, COLUMN_REGISTERS, COLUMN_THREADS, _VECTOR,
    )  # fmt: skip
    # As for torch.sign: the sign of NaN is 0.
    tl.store(dw_at, tl.where(w == w, total * 2, 0.0), mask=mask)
