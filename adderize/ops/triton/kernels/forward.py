"""Forward and input gradient as implicit matrix products: tiles of positions by channels.

Images are dense N,H,W,C; rows of a tile are positions, columns are channels, and the loop runs over
taps and, four at a time, over the channels that are summed. A tile is held as
(registers, registers, threads, threads), which gives each thread a patch of rows and columns; four
values of each operand come from shared memory in one load. A pair then costs two instructions:
forward FADD and FADD with |.|, backward FADD.SAT and FFMA.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import (
    GEOMETRY,
    four_columns,
    locate,
    offsets,
    spread_columns,
    spread_rows,
    tile_pointers,
    unravel,
)


@triton.jit(do_not_specialize=[*GEOMETRY, "splits", "y_split"])
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
    splits,
    y_split,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_THREADS: tl.constexpr,
    COLUMN_THREADS: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    OUT_NHWC: tl.constexpr,
):
    """Y of w (Cout, kh, kw, Cin/groups), float32; partial sums where splits > 1.

    EVEN: the channels of a group are a multiple of 4.
    """
    ROW_REGISTERS: tl.constexpr = ROWS // ROW_THREADS
    COLUMN_REGISTERS: tl.constexpr = COLUMNS // COLUMN_THREADS
    positions = out_height * out_width
    column_tiles = tl.cdiv(filters, COLUMNS)
    # A program is a tile of positions, a part of the sums, a group and a tile of its filters.
    column_tile, program = unravel(tl.program_id(0), column_tiles)
    group, program = unravel(program, groups)
    split, program = unravel(program, splits)
    first = program.to(tl.int64) * ROWS

    image, out_row, out_column = locate(first, positions, out_width, ROWS)
    top = out_row * stride_h - padding_h
    left = out_column * stride_w - padding_w
    live = image < images
    pixel_size = (channels * groups).to(tl.int64)
    x_row = (image * height + top) * width + left
    x_row = x_row * pixel_size + group * channels
    filter = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    taps = kernel_height * kernel_width
    # Beyond the last filter different ones are read: one address, read by all blocks, would take
    # turns (an H100 took up to 13 times as long).
    w_row = (group * filters + filter % filters).to(tl.int64) * (taps * channels)
    if EVEN:
        x_row = tl.multiple_of(x_row, 4)
        w_row = tl.multiple_of(w_row, 4)
    four = tl.arange(0, 4)
    x_row_ptr = x_ptr + x_row[:, None] + four[None, :]
    w_row_ptr = w_ptr + w_row[:, None] + four[None, :]

    chunks = tl.cdiv(channels, 4)
    steps = (kernel_height * kernel_width * chunks).to(tl.int64)
    start = (steps * split // splits).to(tl.int32)
    stop = (steps * (split + 1) // splits).to(tl.int32)
    tap = start // chunks
    channel = (start % chunks) * 4
    row_offset = tap // kernel_width * dilation_h
    column_offset = tap % kernel_width * dilation_w
    # Offsets are carried in units of what they are multiples of, which keeps loads vectors.
    UNIT: tl.constexpr = 4 if EVEN else 1
    x_offset = (row_offset * width.to(tl.int64) + column_offset) * pixel_size + channel
    x_offset = x_offset // UNIT
    w_offset = (tap * channels + channel) // UNIT
    columns_end = kernel_width * dilation_w
    next_tap = (dilation_w * pixel_size - channels) // UNIT
    next_row = (dilation_h * width.to(tl.int64) - columns_end) * pixel_size // UNIT
    total = tl.zeros([ROW_REGISTERS, COLUMN_REGISTERS, ROW_THREADS, COLUMN_THREADS], tl.float32)
    for _ in tl.range(start, stop, num_stages=STAGES):
        row = (top + row_offset).to(tl.uint32, bitcast=True)
        column = (left + column_offset).to(tl.uint32, bitcast=True)
        inside = (live & (row < height) & (column < width))[:, None]
        x_at = x_row_ptr + x_offset * UNIT
        w_at = w_row_ptr + w_offset * UNIT
        if EVEN:
            x = tl.load(x_at, mask=inside, other=0.0)
            w = tl.load(w_at)
        else:
            real = (channel + four < channels)[None, :]
            x = tl.load(x_at, mask=inside & real, other=0.0)
            w = tl.load(w_at, mask=real, other=0.0)
        x0, x1, x2, x3 = four_columns(x.to(tl.float32), ROW_REGISTERS, ROW_THREADS)
        w0, w1, w2, w3 = four_columns(w, COLUMN_REGISTERS, COLUMN_THREADS)
        total += tl.abs(x0[:, None, :, None] - w0[None, :, None, :])
        total += tl.abs(x1[:, None, :, None] - w1[None, :, None, :])
        total += tl.abs(x2[:, None, :, None] - w2[None, :, None, :])
        total += tl.abs(x3[:, None, :, None] - w3[None, :, None, :])
        step = 1 if EVEN else tl.minimum(channels - channel, 4)
        channel += 4
        last_channel = channel >= channels
        channel = tl.where(last_channel, 0, channel)
        column_offset += tl.where(last_channel, dilation_w, 0)
        last_column = column_offset >= columns_end
        column_offset = tl.where(last_column, 0, column_offset)
        row_offset += tl.where(last_column, dilation_h, 0)
        w_offset += step
        x_offset += step + tl.where(last_channel, next_tap, 0) + tl.where(last_column, next_row, 0)

    pixel = out_row * out_width + out_column
    first_filter = group * filters + column_tile * COLUMNS
    y_row, y_first = offsets(image, pixel, first_filter, positions, filters * groups, OUT_NHWC)
    y_step = 1 if OUT_NHWC else positions.to(tl.int64)
    y_at = tile_pointers(
        y_ptr + split.to(tl.int64) * y_split, y_row + y_first, y_step,
        ROW_REGISTERS, ROW_THREADS, COLUMN_REGISTERS, COLUMN_THREADS,
    )  # fmt: skip
    live = spread_rows(live, ROW_REGISTERS, ROW_THREADS)
    real = spread_columns(filter < filters, COLUMN_REGISTERS, COLUMN_THREADS)
    tl.store(y_at, -total, mask=live & real)
