"""Which tile a layer takes where none was timed: a count of the cycles that each would need.

A multiprocessor issues one instruction a cycle on each of its four schedulers, to a warp of 32
lanes. The busiest multiprocessor ends last: it works on ceil(blocks / multiprocessors) blocks, and
its busiest scheduler on ceil(their warps / 4) warps. Large tiles take fewer instructions a pair,
small ones leave fewer lanes idle, at the matrix's edges and in the last wave.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from adderize.ops.triton.tiles import Tile

_SCHEDULERS, _WARP = 4, 32
_REGISTERS, _WARPS, _BLOCKS = 2**16, 64, 32
# Instructions of a step, as counted in the machine code: two for each of a patch's pairs and of the
# four elements, those that load its rows and columns, and those of the loop. That is within 6 % of
# every tile's; channels that 4 does not divide take 7 to 31 % more, most in narrow tiles.
_A_PAIR, _A_VALUE, _A_STEP = 8, 2, 45


class Work(NamedTuple):
    """What a kernel computes: matrices of rows by columns, and the sums behind each element.

    Attributes:
        rows, columns: of one matrix.
        steps: of a sum, four pairs each.
        copies: how many matrices, such as groups and parts of sums.
    """

    rows: int
    columns: int
    steps: int
    copies: int


class Costs(NamedTuple):
    """Cycles beside the pairs, which five layers on an H100 gave (64 to 512 channels, forward).

    Attributes:
        block: to start a block and to end it.
        element: to write one element of the result, of 13 bytes a cycle and multiprocessor.
        lone_warp: the part of a cycle lost for each instruction where a scheduler has one warp;
            half of it where it has two, and so on.
    """

    block: float = 3000.0
    element: float = 0.3
    lone_warp: float = 0.1


def cycles(tile: Tile, work: Work, multiprocessors: int, costs: Costs | None = None) -> float:
    """What the busiest multiprocessor needs, in cycles: an estimate."""
    costs = costs or Costs()
    tiles_of_a_matrix = -(-work.rows // tile.rows) * -(-work.columns // tile.columns)
    blocks = -(-work.copies * tiles_of_a_matrix // multiprocessors)
    threads = tile.row_threads * tile.column_threads
    warps = threads // _WARP
    registers = -(-(tile.registers or 255) // 8) * 8
    resident = max(1, min(_REGISTERS // (threads * registers), _WARPS // warps, _BLOCKS))
    patch = tile.rows * tile.columns / threads
    values = tile.rows / tile.row_threads + tile.columns / tile.column_threads
    of_a_warp = work.steps * (_A_PAIR * patch + _A_VALUE * values + _A_STEP)
    at_once = max(1.0, min(blocks, resident) * warps / _SCHEDULERS)
    in_turn = -(-blocks * warps // _SCHEDULERS)
    around = blocks * (costs.block + costs.element * tile.rows * tile.columns)
    return in_turn * of_a_warp * (1 + costs.lone_warp / at_once) + around


@functools.lru_cache(maxsize=4096)
def likeliest(tiles: Sequence[Tile], work: Work, multiprocessors: int) -> Tile:
    """The tile that needs the fewest cycles; of equals the first."""
    return min(tiles, key=lambda tile: cycles(tile, work, multiprocessors))
