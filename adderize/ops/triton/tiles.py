"""The tiles that kernels can work with, and into how many parts sums are cut."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """Rows by columns of a tile, and the threads along both; each thread holds a patch of it.

    `registers` of a thread at most; `rate`: pairs of an input and a filter value in a cycle, of a
    multiprocessor that is full of such tiles (an H100, long sums).
    """

    rows: int
    columns: int
    row_threads: int
    column_threads: int
    registers: int | None = None
    rate: float = 40.0

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


# Small blocks wait less for one another: 64 threads with patches of 8 by 8 are the fastest where
# there is much to do. 168 registers a thread let 12 warps share a multiprocessor, 128 let 16.
FORWARD = (
    Tile(128, 64, 16, 8, 168, 45.7),
    Tile(64, 64, 8, 8, 168, 47.6),
    Tile(64, 128, 8, 16, 168, 47.5),
    Tile(128, 128, 16, 8, None, 50.3),
    Tile(64, 64, 16, 8, 128, 41.4),
    Tile(128, 32, 16, 4, 168, 44.4),
    Tile(64, 32, 8, 8, 128, 38.7),
    Tile(128, 16, 16, 4, 168, 29.3),
)
# Where channels are not a multiple of 4, their masks take registers as well: narrow tiles would
# spill in the loop.
FORWARD_ODD = tuple(
    tile._replace(registers=None) if tile.column_threads < 8 else tile for tile in FORWARD
)
# It holds a tile of the input as well, and needs all 255 registers for patches of 8 by 8.
INPUT_GRADIENT = (
    Tile(128, 64, 16, 8, None, 37.4),
    Tile(64, 64, 8, 8, None, 38.8),
    Tile(64, 32, 8, 4, None, 40.4),
    Tile(64, 64, 16, 8, 168, 37.5),
    Tile(64, 32, 8, 8, 168, 39.1),
    Tile(128, 16, 16, 4, None, 31.7),
)
# Of filters by the values of a filter: for many, some and few filters. A turn of the loop takes so
# many positions: those that 128 threads read of 64 values with one load each.
SIGN_FILTER_GRADIENT = (Tile(64, 64, 16, 8), Tile(32, 64, 8, 8), Tile(16, 64, 4, 8))
SIGN_POSITIONS = 8

# Into how many parts sums are cut follows an H100, not the device: it changes their rounding.
_MULTIPROCESSORS = 132
_WARPS = 12  # that share a multiprocessor, of 168 registers a thread
_FEWEST_STEPS = 16
_ELEMENTS = 2048  # of a tile of a pass over memory: 16 a thread
# Of a sum's cost, what each further part adds in the sign filter gradient.
_PART = 0.003


def chunk(summed: int) -> int:
    """How many of the summed filters a turn of the input gradient's loop takes: many wait less."""
    return 8 if summed % 8 == 0 else 4


def splits(blocks: int, terms: int) -> int:
    """Into how many parts to cut sums of so many terms: for two blocks a multiprocessor."""
    return max(1, min(2 * _MULTIPROCESSORS // blocks, terms // (4 * _FEWEST_STEPS), 8))


@functools.lru_cache(maxsize=4096)
def sign_splits(blocks: int, tile: Tile, steps: int) -> int:
    """Likewise for the sign filter gradient, whose blocks are few: the last ones end together."""
    at_once = _MULTIPROCESSORS * _WARPS // tile.warps
    counts = range(1, max(1, min(256, steps // _FEWEST_STEPS)) + 1)

    def time(count: int) -> float:
        return -(-blocks * count // at_once) / count + _PART * count * blocks / at_once

    return min(counts, key=time)


@functools.cache
def memory_tile(channels: int, nhwc: bool = True) -> dict[str, int]:
    """The constants of a pass over an image's memory: tiles as long as possible along it."""
    columns = columns_of(channels) if nhwc else 8
    vector = math.gcd(channels, 8)
    return {"ROWS": _ELEMENTS // columns, "COLUMNS": columns, "VECTOR": vector, "num_warps": 4}


def columns_of(channels: int) -> int:
    """How many neighbouring channels such a tile takes: few of them lie idle."""
    return next((size for size in (64, 32, 16, 8) if 8 * (-channels % size) <= channels), 4)


def sign_tile(filters: int) -> Tile:
    """The tile that wastes least on a group's filters; of equals the largest."""
    return min(
        SIGN_FILTER_GRADIENT, key=lambda tile: (-(-filters // tile.rows) * tile.rows, -tile.rows)
    )
