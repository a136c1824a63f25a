"""The tiles that a kernel can work with, and which one is fastest for a layer on this device.

A tile's sums run in the same order whatever its size, so the choice changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """Rows by columns of a tile, and the threads along both; each thread holds a patch of it."""

    rows: int
    columns: int
    row_threads: int
    column_threads: int
    registers: int | None = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of a launch."""
        limit = {} if self.registers is None or torch.version.hip else {"maxnreg": self.registers}
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "ROW_THREADS": self.row_threads,
            "COLUMN_THREADS": self.column_threads,
            "STAGES": 3,
            "num_warps": self.row_threads * self.column_threads // 32,
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
SIGN_FILTER_GRADIENT = Tile(64, 64, 16, 8)
CHANNELWISE = {"ROWS": 32, "COLUMNS": 32, "num_warps": 4, "enable_fp_fusion": True}

# Enough for two on each of an H100's multiprocessors. It does not follow the device, because the
# parts of a sum change its rounding.
_BLOCKS = 264
_FEWEST_STEPS = 16

# About 0.1 ms of waiting on the device, longer than the host takes to launch a kernel.
_HEAD_START = 200_000

_fastest: dict[tuple[object, ...], Tile] = {}


def fitting(tiles: Sequence[Tile], rows: int, columns: int) -> list[Tile]:
    """The tiles that waste little on a matrix of this size, the likeliest first."""

    def padded(tile: Tile) -> int:
        return -(-rows // tile.rows) * tile.rows * (-(-columns // tile.columns) * tile.columns)

    least = min(padded(tile) for tile in tiles)
    return [tile for tile in tiles if padded(tile) <= 1.25 * least]


def fastest(
    launch: Callable[[Tile], object],
    tiles: Sequence[Tile],
    size: tuple[int, int, int],
    device: torch.device,
    key: tuple[object, ...],
) -> Tile:
    """The tile for a matrix of (rows, columns, summed) elements; timed once for sizes alike.

    Nothing is timed while a CUDA graph is captured: the likeliest tile then serves.

    Args:
        launch: runs the kernel with a tile; it may be called repeatedly.
        tiles: what there is, the likeliest first.
        size: rows, columns and length of the sums.
        device: where.
        key: what else tells one kernel from another: its name, the dtype.
    """
    candidates = fitting(tiles, size[0], size[1])
    if device.type != "cuda" or len(candidates) == 1:
        return candidates[0]
    rows, columns, summed = size
    key = (device.index, *key, rows.bit_length(), columns, summed.bit_length())
    if key not in _fastest:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _fastest[key] = min(candidates, key=lambda tile: _milliseconds(launch, tile))
    return _fastest[key]


def _milliseconds(launch: Callable[[Tile], object], tile: Tile, repeats: int = 3) -> float:
    launch(tile)
    times: list[float] = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch._C._cuda_sleep(_HEAD_START)
        start.record()
        launch(tile)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)


def splits(blocks: int, steps: int, most: int = 8) -> int:
    """Into how many parts to cut sums of `steps` steps, so that a few blocks fill a device."""
    return max(1, min(_BLOCKS // blocks, steps // _FEWEST_STEPS, most))
