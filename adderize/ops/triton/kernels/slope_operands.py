"""The filters as the input gradient reads them, relative to a centre of each channel."""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import unravel

_LARGEST_CENTRE = tl.constexpr(65504.0)


@triton.jit
def _load(w_ptr, row, channel, mask, channels, filters, taps, NHWC: tl.constexpr):
    """F of rows (tap, filter) and channels, float32."""
    at = (row % filters).to(tl.int64) * (channels * taps)
    if NHWC:
        at = (at + row // filters * channels)[:, None] + channel[None, :]
    else:
        at = (at + row // filters)[:, None] + (channel * taps)[None, :]
    return tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["channels", "filters", "taps"])
def slope_operands(
    w_ptr,
    slopes_ptr,
    centre_ptr,
    channels,
    filters,
    taps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NHWC: tl.constexpr,
    SIGN: tl.constexpr,
):
    """w' = (F - c) / 2 + 1/2 (groups, taps, channels, filters), and c, the means (Cin,) of F.

    Of w (Cout, Cin/groups, taps); SIGN: w' = F and c = 0. A NaN makes its channel's c NaN, and with
    it the gradient; infinite filters do not.
    """
    column_tile, group = unravel(tl.program_id(0), tl.cdiv(channels, COLUMNS))
    channel = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    real = (channel < channels)[None, :]
    rows = taps * filters
    first = group.to(tl.int64) * rows * channels
    w_ptr += first
    slopes_ptr += first
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & real
        w = _load(w_ptr, row, channel, mask, channels, filters, taps, NHWC)
        total += tl.clamp(w, -_LARGEST_CENTRE, _LARGEST_CENTRE, tl.PropagateNan.ALL)
    centre = tl.sum(total, 0) / rows
    if SIGN:
        centre = tl.where(centre == centre, 0.0, centre)
    tl.store(centre_ptr + group * channels + channel, centre, mask=channel < channels)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & real
        w = _load(w_ptr, row, channel, mask, channels, filters, taps, NHWC)
        slope = w if SIGN else (w - centre[None, :]) * 0.5 + 0.5
        at = (row // filters).to(tl.int64) * channels
        at = (at[:, None] + channel[None, :]) * filters + (row % filters)[:, None]
        tl.store(slopes_ptr + at, slope, mask=mask)
