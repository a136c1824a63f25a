"""Loops in the native library: what its arithmetic could reach at most on this processor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from adderize.errors import AdderizeError
from adderize.ops.native.library import call

# By the term of a pair of input x and filter F, with the gradient g.
LOOPS = {
    "multiply": "x F",
    "maxima": "max(x, F)",
    "clip": "g clip(F - x, -1, 1)",
    "sign": "g sgn(x - F)",
    "bytes": "|x - F|",
}
MOST_ROUNDS = 2**20


def register_loop(
    name: str, rounds: int = MOST_ROUNDS, operands: Sequence[float] = (1.0, 3.0, 2.0)
) -> tuple[int, float]:
    """Sum the same term again and again, in registers, on torch's present number of threads.

    Args:
        name: one of LOOPS.
        rounds: 1 to MOST_ROUNDS, of one term in each accumulator.
        operands: x, F and g; for "bytes" x and F are integers of 0 to 255.

    Returns:
        How many terms were summed, and their sum. Float sums are in float32.
    """
    if name not in LOOPS:
        raise AdderizeError(
            f"there is no register loop {name!r}; expected one of {', '.join(LOOPS)}"
        )
    pairs, total = ctypes.c_int64(), ctypes.c_double()
    call(
        "adderize_register_loop",
        list(LOOPS).index(name),
        rounds,
        (ctypes.c_float * 3)(*operands),
        torch.get_num_threads(),
        ctypes.byref(pairs),
        ctypes.byref(total),
    )
    return pairs.value, total.value
