"""The tiles that kernels can work with, and into how many parts sums are cut."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """Rows by columns of a tile, and the threads along both; each thread holds a patch of it."""

    rows: int
    columns: int
    row_threads: int
    column_threads: int
    registers: int | None = None

    @property
    def warps(self) -> int:
        return self.row_threads * self.column_threads // 32

    def options(self) -> dict[str, Any]:
        """The keyword arguments of a launch."""
        limit = {} if self.registers is None or torch.version.hip else {"maxnreg": self.registers}
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "ROW_THREADS": self.row_threads,
            "COLUMN_THREADS": self.column_threads,
            "STAGES": 3,
            "num_warps": self.warps,
            "enable_fp_fusion": True,
            **limit,
        }


# 168 registers a thread let three blocks of 128 threads share a multiprocessor. The input gradient
# holds a tile of the input as well, and needs all 255 for patches of 8 by 8.
FORWARD = (
    Tile(128, 64, 16, 8, 168),
    Tile(64, 128, 8, 16, 168),
    Tile(128, 128, 16, 16, 168),
    Tile(128, 128, 16, 8),
    Tile(64, 64, 8, 8, 168),
    Tile(128, 32, 16, 4, 168),
    Tile(32, 32, 8, 8, 168),
    Tile(256, 16, 32, 2, 168),
)
# Where channels are not a multiple of 4, their masks take registers as well: narrow tiles would
# spill in the loop.
FORWARD_ODD = tuple(
    tile._replace(registers=None) if tile.column_threads < 8 else tile for tile in FORWARD
)
INPUT_GRADIENT = (
    Tile(128, 64, 16, 8),
    Tile(64, 128, 8, 16),
    Tile(128, 128, 16, 16),
    Tile(64, 64, 8, 8),
    Tile(64, 64, 16, 8),
    Tile(128, 32, 16, 4),
    Tile(32, 32, 8, 8),
    Tile(128, 16, 32, 2),
)
# Of filters by the values of a filter: for many, some and few filters. A turn of the loop takes so
# many positions: those that 128 threads read of 64 values with one load each.
SIGN_FILTER_GRADIENT = (Tile(64, 64, 16, 8), Tile(32, 64, 8, 8), Tile(16, 64, 4, 8))
SIGN_POSITIONS = 8

# Enough for two blocks of four warps on each of an H100's multiprocessors. It does not follow the
# device, because the parts of a sum change its rounding.
_WARPS = 264 * 4
_FEWEST_STEPS = 16


def splits(blocks: int, steps: int, most: int = 8, warps: int = 4) -> int:
    """Into how many parts to cut sums of `steps` steps, so that a few blocks fill a device."""
    return max(1, min(_WARPS // (blocks * warps), steps // _FEWEST_STEPS, most))


def sign_tile(filters: int) -> Tile:
    """The tile that wastes least on a group's filters; of equals the largest."""
    return min(
        SIGN_FILTER_GRADIENT, key=lambda tile: (-(-filters // tile.rows) * tile.rows, -tile.rows)
    )
