"""Training steps on a GPU: the CNN beside the adder network, memory, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from adderize.bench import gpu
from adderize.bench.networks import TWINS, noise, training_step, twin
from adderize.bench.phases import phases
from adderize.bench.timing import side_by_side
from adderize.models.by_name import build, input_size


class Network(NamedTuple):
    """What a step is measured of; `size` is (C, H, W), None for the model's own."""

    arch: str
    batch: int
    size: tuple[int, ...] | None = None

    @property
    def input_size(self) -> tuple[int, ...]:
        return self.size or input_size(self.arch, build(self.arch))


def run_step(network: Network, precision: str, device: str) -> None:
    """One step of the adder network, not timed; arguments as those of :func:`measure_step`."""
    try:
        _step("adder", network, precision, device)()
    finally:
        if gpu.is_cuda(device):
            # Other processes run networks beside it.
            torch.cuda.empty_cache()


def _step(kind: str, network: Network, precision: str, device: str) -> Callable[[], object]:
    images = noise(network.input_size, network.batch, device)
    step = training_step(kind, twin(kind, network.arch, device), images)
    return gpu.in_precision("tf32" if precision == "fp32" else precision, step, device)


def measure_step(network: Network, precision: str, device: str, **timing: Any) -> dict[str, Any]:
    """Milliseconds and peak memory of both networks' steps, their ratio, and the adder's phases.

    In "fp32" the adder's filter gradient and the CNN compute in TF32, as trainings on GPUs do.

    Args:
        network: what.
        precision: "fp32" or "bf16", of :data:`adderize.bench.gpu.PRECISIONS`.
        device: where.
        timing: `rounds` and `seconds` of :func:`adderize.bench.timing.side_by_side`.
    """
    size = network.input_size
    row: dict[str, Any] = {
        "arch": network.arch,
        "batch": network.batch,
        "input_size": list(size),
        "precision": precision,
    }
    calls: dict[str, Callable[[], object]] = {}
    for kind in TWINS:
        calls[kind] = _step(kind, network, precision, device)
        # Of each network alone, as nothing else is allocated in its second step.
        row[f"{kind}_peak_mb"] = gpu.peak_megabytes(calls[kind], device)
    best = side_by_side(calls, **timing)
    row |= {f"{kind}_ms": seconds * 1e3 for kind, seconds in best.items()}
    row["ratio"] = best["adder"] / best["cnn"]
    row["adder_phases_ms"] = phases(calls["adder"], device)
    if gpu.is_cuda(device):
        calls.clear()
        torch.cuda.empty_cache()
    return row
