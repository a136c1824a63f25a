"""The tiles of a network's layers, timed on a GPU and kept for the trainings to come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adderize.bench import gpu
from adderize.bench.compiling import run_in_processes
from adderize.bench.networks import noise, training_step, twin
from adderize.errors import AdderizeError
from adderize.ops.choice import choose

_SHARES = 8


class Tuned(NamedTuple):
    """What was timed.

    Attributes:
        file: where the choices are kept; None where it could not be written.
        layers: how many kernels of layers of different sizes were timed.
    """

    file: Path | None
    layers: int


def tune(
    arch: str,
    input_size: tuple[int, ...],
    batch: int,
    precisions: Sequence[str] = ("fp32",),
    device: str = "cuda",
) -> Tuned:
    """Times the tiles of every layer in one training step of an adder network, and keeps the best.

    A choice holds for a layer's sizes, so for the batch and the image size of the training.

    Args:
        arch: a name that `adderize.models.by_name.build` takes.
        input_size: (C, H, W).
        batch: images a step and device.
        precisions: of :data:`adderize.bench.gpu.PRECISIONS`.
        device: a CUDA device.

    Raises:
        AdderizeError: another device, or Triton does not serve it.
    """
    choosing = _choosing(device)
    steps = arch, input_size, batch, tuple(precisions), device
    run_in_processes(partial(_run_share, *steps, index) for index in range(_SHARES))
    with choosing.timing() as tiles:
        try:
            _run_steps(*steps)
        finally:
            # What was timed before an error, or before someone lost patience, holds.
            file = choosing.keep(torch.device(device), tiles)
    return Tuned(file, len(tiles))


def _run_steps(
    arch: str, input_size: tuple[int, ...], batch: int, precisions: Sequence[str], device: str
) -> None:
    network = twin("adder", arch, device)
    step = training_step("adder", network, noise(input_size, batch, device))
    for name in precisions:
        with gpu.precision(name, device):
            step()


def _run_share(*steps: Any) -> None:
    """Runs one in so many tiles without timing it, so that it is compiled; index: which."""
    *arguments, index = steps
    choosing, number = _choosing(arguments[-1]), itertools.count()

    def run(launch: Callable[[Any], object], tile: Any) -> float:
        mine = next(number) % _SHARES == index
        # What was run is chosen, and run again: no other one is compiled.
        return 0.0 if mine and choosing.runs(launch, tile) else 1.0

    with choosing.timing(run):
        _run_steps(*arguments)


def kept(device: str = "cuda") -> Tuned:
    """The file of the choices for a CUDA device, and how many it holds."""
    return Tuned(*_choosing(device).kept(torch.device(device)))


def _choosing(device: str) -> Any:
    if not gpu.is_cuda(device):
        raise AdderizeError(f"tiles are timed on a CUDA device, not on {device}")
    if not torch.cuda.is_available():
        raise AdderizeError(
            "tiles are timed on a CUDA device, and torch finds none on this machine; "
            "what is not timed a rule chooses"
        )
    choice = choose("cuda")
    if choice.name != "triton":
        raise AdderizeError(f"{choice.name} serves {device}, without tiles: {choice.reason}")
    from adderize.ops.triton import choosing

    return choosing
