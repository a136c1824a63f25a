"""The tile that a kernel works with: as it was timed on this device, else as the rule says.

A tile's sums run in the same order whatever its size, so the choice changes no bit of the result.
Nothing is timed unless :func:`timing` asks for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import triton

from adderize.ops.triton import tuned
from adderize.ops.triton.rule import Work, cycles, likeliest
from adderize.ops.triton.tiles import Tile

Launch = Callable[[Tile], object]
Timer = Callable[[Launch, Tile], float]

# What an H100 has; in the interpreter there is no device to ask.
_MULTIPROCESSORS = 132
# Tiles that the rule expects to take this many times the best one's cycles are not timed.
_HOPELESS = 1.5
# About 0.1 ms of waiting on the device, longer than the host takes to launch a kernel.
_HEAD_START = 200_000
_REPEATS = 3

# Not a ContextVar: autograd calls the gradients' kernels in threads of its own.
_timer: Timer | None = None
_timed: dict[str, Tile] = {}


def choose_tile(
    launch: Launch, tiles: Sequence[Tile], work: Work, device: torch.device, kernel: tuple[str, ...]
) -> Tile:
    """The tile for a layer.

    Args:
        launch: runs the kernel with a tile; it may be called repeatedly.
        tiles: what there is.
        work: the layer's sizes.
        device: where.
        kernel: what tells one kernel from another: its name, the dtype.
    """
    if _timer is None:
        return _untimed(tuple(tiles), work, device, kernel)
    layer = layer_name(kernel, work)
    if layer not in _timed:
        promising = candidates(tiles, work, multiprocessors(device))
        timer = _timer
        _timed[layer] = min(promising, key=lambda tile: timer(launch, tile))
    return _timed[layer]


@contextlib.contextmanager
def timing(timer: Timer | None = None) -> Iterator[dict[str, Tile]]:
    """Times the promising tiles of each layer that runs inside, the first time that it does.

    Args:
        timer: milliseconds of a launch with a tile, by default on the current CUDA device.

    Yields:
        The fastest tile by layer, filled as layers run.
    """
    global _timer
    _timed.clear()
    _timer = timer or milliseconds
    try:
        yield _timed
    finally:
        _timer = None


def candidates(tiles: Sequence[Tile], work: Work, processors: int) -> list[Tile]:
    """The tiles that may be the fastest, the likeliest first."""
    ordered = sorted(tiles, key=lambda tile: cycles(tile, work, processors))
    most = _HOPELESS * cycles(ordered[0], work, processors)
    return [tile for tile in ordered if cycles(tile, work, processors) <= most]


def machine_of(device: torch.device) -> tuned.Machine:
    """What choices on a CUDA device hold for."""
    name = torch.cuda.get_device_name(device)
    return tuned.Machine(name, triton.__version__, tuned.kernels_digest())


def layer_name(kernel: tuple[str, ...], work: Work) -> str:
    """As a layer is called in the file of choices."""
    return " ".join([*kernel, "x".join(map(str, work))])


@functools.lru_cache(maxsize=4096)
def _untimed(
    tiles: tuple[Tile, ...], work: Work, device: torch.device, kernel: tuple[str, ...]
) -> Tile:
    if device.type == "cuda":
        found = tuned.known(machine_of(device)).get(layer_name(kernel, work))
        if found in tiles:
            return found
    return likeliest(tiles, work, multiprocessors(device))


def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def keep(device: torch.device, tiles: Mapping[str, Tile]) -> Path | None:
    """Adds to the device's file, as :func:`tuned.keep`, and chooses anew from then on."""
    file = tuned.keep(machine_of(device), tiles)
    tuned.known.cache_clear()
    _untimed.cache_clear()
    return file


def kept(device: torch.device) -> tuple[Path, int]:
    """The device's file, and how many choices it holds."""
    machine = machine_of(device)
    return tuned.file_of(machine), len(tuned.known(machine))


def runs(launch: Launch, tile: Tile) -> bool:
    """Launches a tile; whether the device has the registers and the shared memory for it."""
    try:
        launch(tile)
    except triton.runtime.errors.OutOfResources:
        return False
    return True


def milliseconds(launch: Launch, tile: Tile) -> float:
    """Best of several launches on the current CUDA device; infinite where the tile cannot run."""
    if not runs(launch, tile):
        return float("inf")
    times: list[float] = []
    for _ in range(_REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch._C._cuda_sleep(_HEAD_START)
        start.record()
        launch(tile)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)
