"""What the kernels share: where a tile's rows and columns lie, and how operands are broadcast."""

from __future__ import annotations

import triton
import triton.language as tl

# The integers of a layer, in the order in which every kernel takes them. They are not specialised:
# one compiled kernel serves all layers.
GEOMETRY = (
    "images",
    "height",
    "width",
    "out_height",
    "out_width",
    "channels",
    "filters",
    "groups",
    "kernel_height",
    "kernel_width",
    "stride_h",
    "stride_w",
    "padding_h",
    "padding_w",
    "dilation_h",
    "dilation_w",
)


@triton.jit
def unravel(program, size):
    """Where a program stands along a dimension of this size, and its number among the rest."""
    return program % size, program // size


@triton.jit
def locate(first, per_image, width, BLOCK: tl.constexpr):
    """Image (int64), row and column of the positions first … first + BLOCK; `first` is int64."""
    return locate_each(first, tl.arange(0, BLOCK), per_image, width)


@triton.jit
def locate_each(first, further, per_image, width):
    """Image (int64), row and column of the positions `first` (int64) + `further` (int32)."""
    image = first // per_image
    at = (first - image * per_image).to(tl.int32) + further
    pixel = at % per_image
    return image + at // per_image, pixel // width, pixel % width


@triton.jit
def locate_in_image(program, height, width, BLOCK: tl.constexpr):
    """Image (int64), rows, columns and whether they exist of a block of one image's positions."""
    block, image = unravel(program, tl.cdiv(height * width, BLOCK))
    at = block * BLOCK + tl.arange(0, BLOCK)
    return image.to(tl.int64), at // width, at % width, at < height * width


@triton.jit
def offsets(image, pixel, channel, pixels, channels, NHWC: tl.constexpr):
    """Where the rows and columns of a tile lie in a dense image of `pixels` by `channels`."""
    pixels = pixels.to(tl.int64)
    if NHWC:
        return (image * pixels + pixel) * channels, channel.to(tl.int64)
    else:
        return image * channels * pixels + pixel, channel * pixels


@triton.jit
def spread(values, REGISTERS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """Rows or columns as (REGISTERS, THREADS); a thread has VECTOR neighbours of each run."""
    if VECTOR == 1:
        return tl.reshape(values, [REGISTERS, THREADS])
    else:
        runs = tl.reshape(values, [REGISTERS // VECTOR, THREADS, VECTOR])
        return tl.reshape(tl.permute(runs, 0, 2, 1), [REGISTERS, THREADS])


@triton.jit
def spread_rows(values, REGISTERS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr = 1):
    return spread(values, REGISTERS, THREADS, VECTOR)[:, None, :, None]


@triton.jit
def spread_columns(
    values, REGISTERS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr = 1
):
    return spread(values, REGISTERS, THREADS, VECTOR)[None, :, None, :]


@triton.jit
def tile_pointers(
    ptr, row, step,
    ROW_REGISTERS: tl.constexpr, ROW_THREADS: tl.constexpr,
    COLUMN_REGISTERS: tl.constexpr, COLUMN_THREADS: tl.constexpr, VECTOR: tl.constexpr = 1,
):  # fmt: skip
    """Pointers to a tile, from the offsets of its rows' first elements and the columns' step.

    What differs between a thread's columns is added last: where the step is 1 it is a constant, so
    that a thread needs no more than a pointer a row. The compiler lays threads along the dimensions
    where pointers are contiguous, and is told that these are the last two: laid along others they
    read shared memory with conflicts. (Nothing is known to be aligned, so no access grows wider.)
    """
    register, thread = tl.arange(0, COLUMN_REGISTERS), tl.arange(0, COLUMN_THREADS)
    register = register // VECTOR * (COLUMN_THREADS * VECTOR) + register % VECTOR
    at = ptr + spread_rows(row, ROW_REGISTERS, ROW_THREADS, VECTOR)
    at += (thread * VECTOR * step)[None, None, None, :]
    at += (register * step)[None, :, None, None]
    return tl.max_contiguous(at, [1, 1, 2, COLUMN_THREADS])


@triton.jit
def four_columns(tile, REGISTERS: tl.constexpr, THREADS: tl.constexpr):
    """The columns of a (REGISTERS * THREADS, 4) tile, each (REGISTERS, THREADS)."""
    even, odd = tl.split(tl.reshape(tile, [REGISTERS, THREADS, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def advance(image, row, column, images_on, rows_on, columns_on, height, width):
    """A position so many images, rows (below `height`) and columns (below `width`) further on."""
    column += columns_on
    over = column >= width
    column = tl.where(over, column - width, column)
    row += rows_on + over.to(tl.int32)
    over = row >= height
    row = tl.where(over, row - height, row)
    return image + images_on + over.to(tl.int32), row, column


@triton.jit
def first_tap(residue, stride, dilation, kernel):
    """The smallest tap with tap * dilation = residue (mod stride), or at least `kernel` if none."""
    tap = residue
    if dilation != 1:
        tap = residue * 0
        while (tap < kernel) & ((tap * dilation) % stride != residue):
            tap += 1
    return tap


@triton.jit
def slope(difference, SIGN: tl.constexpr):
    """sat(difference), or (sgn(difference) + 1) / 2, as one instruction each on the device."""
    if SIGN:
        difference = tl.fma(difference, 1.7014118346046923e38, 0.5)
    return tl.clamp(difference, 0.0, 1.0)
