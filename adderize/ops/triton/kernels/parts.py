"""The sum of the parts into which sums were cut."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["parts", "size"])
def add_parts(parts_ptr, result_ptr, parts, size, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of (parts, size), in float32 and a fixed order, rounded to the result's dtype."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, AT_ONCE)
    exists = (at < size)[None, :]
    total = tl.zeros([AT_ONCE, BLOCK], tl.float32)
    for first in range(0, parts, AT_ONCE):
        part = first + lane
        values = parts_ptr + part.to(tl.int64)[:, None] * size + at[None, :]
        total += tl.load(values, mask=(part < parts)[:, None] & exists, other=0.0)
    tl.store(result_ptr + at, tl.sum(total, 0), mask=at < size)
