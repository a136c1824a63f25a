"""Which tile a layer takes where none was timed: an estimate of the cycles that each would need.

A multiprocessor works on a few blocks at a time, and the busiest one ends last. Full of blocks of a
tile it computes the tile's rate of pairs; with fewer warps the lanes wait more. Large tiles read
less, small ones leave fewer lanes idle, at the matrix's edges and in the last wave.

Rates and costs were fitted to 428 timings on an H100: layers of ResNets, MobileNet v2 and CIFAR
networks, forward in float32 and bfloat16 and input gradient in float32, whose channels fill the
tiles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from adderize.ops.triton.tiles import Tile

_SCHEDULERS = 4
_REGISTERS, _WARPS, _BLOCKS = 2**16, 64, 32
# Threads along a tile's columns that together write whole sectors of 32 bytes.
_SECTOR = 8


class Work(NamedTuple):
    """What a kernel computes: matrices of rows by columns, and the sums behind each element.

    Attributes:
        rows, columns: of one matrix.
        terms: of a sum.
        copies: how many matrices, such as groups and parts of sums.
        tensors: of a matrix's size, that a tile reads or writes beside what it sums.
    """

    rows: int
    columns: int
    terms: int
    copies: int
    tensors: int = 1


class Costs(NamedTuple):
    """What the pairs' rate leaves out.

    Attributes:
        element: cycles of a multiprocessor to read or write an element of a tile.
        narrow: with fewer threads along the columns than write a sector: the power of what is lost.
        few_warps: of so many warps on a scheduler, half of their cycles are lost to waiting.
    """

    element: float = 0.417
    narrow: float = 0.742
    few_warps: float = 1.02


def cycles(tile: Tile, work: Work, multiprocessors: int, costs: Costs | None = None) -> float:
    """What the busiest multiprocessor needs, in cycles: an estimate."""
    costs = costs or Costs()
    tiles_of_a_matrix = -(-work.rows // tile.rows) * -(-work.columns // tile.columns)
    blocks = -(-work.copies * tiles_of_a_matrix // multiprocessors)
    resident = _resident(tile)
    waves, rest = divmod(blocks, resident)
    of_a_block = work.terms * tile.rows * tile.columns / tile.rate
    pairs = waves * resident * of_a_block
    if rest:
        full, few = (_busy(count * tile.warps, costs) for count in (resident, rest))
        pairs += rest * of_a_block * full / few
    sectors = math.pow(_SECTOR / min(_SECTOR, tile.column_threads), costs.narrow)
    around = costs.element * work.tensors * tile.rows * tile.columns * sectors
    return pairs + blocks * around


def _resident(tile: Tile) -> int:
    """Blocks that share a multiprocessor."""
    registers = -(-(tile.registers or 255) // 8) * 8
    by_registers = _REGISTERS // (32 * tile.warps * registers)
    return max(1, min(by_registers, _WARPS // tile.warps, _BLOCKS))


def _busy(warps: int, costs: Costs) -> float:
    """The part of a scheduler's cycles in which it has something to issue."""
    on_each = warps / _SCHEDULERS
    return on_each / (max(1.0, on_each) + costs.few_warps)


@functools.lru_cache(maxsize=4096)
def likeliest(tiles: Sequence[Tile], work: Work, multiprocessors: int) -> Tile:
    """The tile that needs the fewest cycles; of equals the first."""
    return min(tiles, key=lambda tile: cycles(tile, work, multiprocessors))
