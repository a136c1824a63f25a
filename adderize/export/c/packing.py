"""Constants in the order in which the C functions read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adderize.integer.program import Instruction

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
NEGATIVE, LAST = 32, 64
LEVELS = 16


def lift_of(product: Instruction) -> int:
    """How far a kept layer's inputs are shifted to the left, so that its terms are shifts to the
    right. They fit 32 bits, as the term with that shift does."""
    return max(int(product.tensors["shifts"].max()), 0)


def pack_terms(shifts: Any, signs: Any) -> Bytes:
    """Factors as bytes, one for each signed power of two.

    Args:
        shifts, signs: int8 (T, N). A term of sign 0 is left out. A factor without any becomes
            1 - 1.
    """
    if len(shifts) == 1:
        shifts, signs = (np.concatenate([a, np.zeros_like(a)]) for a in (shifts, signs))
    shifts, signs = np.where(signs, shifts, 0).T.astype(np.uint8), np.array(signs.T)
    signs[:, :2][~signs.any(1)] = (1, -1)
    kept = signs != 0
    codes = shifts | np.where(signs < 0, NEGATIVE, 0).astype(np.uint8)
    last = kept.shape[1] - 1 - kept[:, ::-1].argmax(1)
    codes[np.arange(len(codes)), last] |= LAST
    packed: Bytes = codes[kept]
    return packed


class Grid(NamedTuple):
    """Bytes ``offset + (q << shift)`` for q below 16."""

    offset: int
    shift: int


def grid_of(weight: Bytes) -> Grid | None:
    """The grid of at most 16 levels that filters lie on, if there is one."""
    offset = int(weight.min())
    multiples = int(np.bitwise_or.reduce((weight - offset).reshape(-1)))
    shift = (multiples & -multiples).bit_length() - 1 if multiples else 0
    fits = (int(weight.max()) - offset) >> shift < LEVELS
    return Grid(offset, shift) if fits else None


def pack_filters(weight: Bytes, groups: int, grid: Grid | None) -> Bytes:
    """Filters in fours, what is left of each group behind them.

    Args:
        weight: uint8 (filters, taps), those of a group side by side.
        grid: pack the fours in 4 bits.
    """
    parts: list[Bytes] = []
    for filters in np.split(weight, groups):
        fours = len(filters) // 4 * 4
        packed: Any = filters[:fours].reshape(-1, 4, weight.shape[1]).swapaxes(1, 2)
        if grid:
            q = (packed - grid.offset) >> grid.shift
            packed = q[..., 0::2] | q[..., 1::2] << 4
        parts += [packed.reshape(-1), filters[fours:].reshape(-1)]
    return np.concatenate(parts).astype(np.uint8)
