"""Constants as C reads them, read back."""

from __future__ import annotations

import numpy as np
import pytest

from adderize.export.c.packing import Grid, grid_of, pack_filters, pack_terms


def factors(packed: list[int]) -> list[int]:
    """What adderize_layers.c makes of terms."""
    result, total = [], 0
    for code in packed:
        total += (-1 if code & 32 else 1) << (code & 31)
        if code & 64:
            result.append(total)
            total = 0
    return result


@pytest.mark.parametrize("terms", [1, 2, 3, 5])
def test_factors_are_sums_of_terms(terms: int) -> None:
    random = np.random.default_rng(0)
    shifts = random.integers(0, 31, (terms, 200)).astype(np.int8)
    signs = random.integers(-1, 2, (terms, 200)).astype(np.int8)
    packed = pack_terms(shifts, signs)
    expected = (signs.astype(np.int64) << shifts.astype(np.int64)).sum(0)
    assert factors(packed.tolist()) == expected.tolist()
    zeros = int((signs == 0).all(0).sum())
    assert len(packed) == int((signs != 0).sum()) + 2 * zeros


@pytest.mark.parametrize("grid", [Grid(0, 0), Grid(7, 4), Grid(0, 4), Grid(100, 2)])
def test_filters_of_16_levels_take_half_the_bytes(grid: Grid) -> None:
    q = np.random.default_rng(0).integers(0, 16, (10, 6)).astype(np.uint8)
    q[0, :2] = 0, 15
    q[1, :2] = 0, 1
    weight = (grid.offset + (q.astype(np.int64) << grid.shift)).astype(np.uint8)
    assert grid_of(weight) == grid
    packed = pack_filters(weight, 1, grid)
    assert len(packed) == 2 * 4 * 6 // 2 + 2 * 6
    halves = np.stack([packed[:24] & 15, packed[:24] >> 4], 1).reshape(2, 6, 4)
    assert np.array_equal(halves.swapaxes(1, 2).reshape(8, 6), q[:8])
    assert np.array_equal(packed[24:].reshape(2, 6), weight[8:])


@pytest.mark.parametrize(
    ("levels", "grid"),
    [([5], Grid(5, 0)), ([8, 248], Grid(8, 4)), ([0, 17], None), ([0, 1, 255], None)],
)
def test_grids_have_at_most_16_levels_a_power_of_two_apart(
    levels: list[int], grid: Grid | None
) -> None:
    assert grid_of(np.array([levels], np.uint8)) == grid


def test_groups_are_packed_one_by_one() -> None:
    weight = np.arange(24, dtype=np.uint8).reshape(12, 2)
    packed = pack_filters(weight, 2, None)
    assert packed[:8].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert packed[8:12].tolist() == [8, 9, 10, 11]
    assert packed[12:20].tolist() == [12, 14, 16, 18, 13, 15, 17, 19]
