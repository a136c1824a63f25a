"""The sums of g that the input gradient starts with."""

from __future__ import annotations

import triton
import triton.language as tl

from adderize.ops.triton.kernels.indexing import unravel


@triton.jit(do_not_specialize=["positions", "filters", "groups"])
def group_sums(
    g_ptr,
    sums_ptr,
    positions,
    filters,
    groups,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Sums of g (positions, groups * filters) over each group's filters: (positions, groups).

    VECTOR divides the filters.
    """
    filters = filters // VECTOR * VECTOR
    group, block = unravel(tl.program_id(0), groups)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    at = g_ptr + (row * groups + group)[:, None] * filters + column[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, filters, COLUMNS):
        mask = (row < positions)[:, None] & (first + column < filters)[None, :]
        total += tl.load(at + first, mask=mask, other=0.0)
    tl.store(sums_ptr + row * groups + group, tl.sum(total, 1), mask=row < positions)
