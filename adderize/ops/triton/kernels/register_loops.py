"""Loops that do nothing but a pair's two instructions: what a device's lanes can do at most."""

import triton
import triton.language as tl


@triton.jit
def forward_pairs(x_ptr, sums_ptr, turns, BLOCK: tl.constexpr):
    """sums[i] = sum over pairs of |x - w|: additions, one of them of an absolute value."""
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    w = tl.program_id(0).to(tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for _ in range(turns):
        sums += tl.abs(x - w)
        w += 1.0
    tl.store(sums_ptr + tl.program_id(0), tl.sum(sums))


@triton.jit
def gradient_pairs(x_ptr, sums_ptr, turns, BLOCK: tl.constexpr):
    """sums[i] = sum over pairs of g clip(x - w, 0, 1): an addition and a multiply-add."""
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    w = tl.program_id(0).to(tl.float32)
    g = w + 2.0
    sums = tl.zeros((BLOCK,), tl.float32)
    for _ in range(turns):
        sums += tl.clamp(x - w, 0.0, 1.0) * g
        w += 1.0
    tl.store(sums_ptr + tl.program_id(0), tl.sum(sums))
