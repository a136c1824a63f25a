"""Whole networks: a training step or inference of a CNN and of its adder twin."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.adaptive_lr import scale_adder_gradients_
from adderize.architectures import blank, build
from adderize.bench.timing import side_by_side
from adderize.surgery import adderize

_MEGABYTE = 2**20


def twin(name: str, arch: str, device: str) -> nn.Module:
    """The convolutional network ("cnn") or its adder form ("adder"), channels_last."""
    torch.manual_seed(0)
    network = build(arch)
    if name == "adder":
        network = adderize(network, init="normal")
    return network.to(device).to(memory_format=torch.channels_last)


def training_step(name: str, network: nn.Module, batch: Tensor) -> Callable[[], None]:
    """Forward, backward, adaptive rate (adders only) and an SGD step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    network.train()
    targets = torch.zeros(len(batch), dtype=torch.long, device=batch.device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(batch).float(), targets).backward()
        if name == "adder":
            scale_adder_gradients_(network, 0.2)
        optimizer.step()

    return step


def inference(name: str, network: nn.Module, batch: Tensor) -> Callable[[], None]:
    """A forward pass in eval mode."""
    network.eval()

    def run() -> None:
        with torch.inference_mode():
            network(batch)

    return run


TWINS = ("cnn", "adder")
TASKS = {"step": training_step, "inference": inference}


def measure(
    task: str, arch: str, input_size: tuple[int, ...], batch: int, device: str, **timing: Any
) -> dict[str, Any]:
    """Milliseconds and peak memory of both networks, and the ratios adder / cnn.

    Args:
        task: ``"step"`` (training) or ``"inference"``.
        arch: a name that `adderize.architectures.build` takes.
        input_size: (C, H, W).
        batch: images a step.
        device: where.
        timing: `rounds` and `seconds` of `adderize.bench.timing.side_by_side`.
    """
    images = _images(input_size, batch, device)
    calls = {name: TASKS[task](name, twin(name, arch, device), images) for name in TWINS}
    best = side_by_side(calls, **timing)
    peak = {name: _peak_megabytes(task, name, arch, input_size, batch, device) for name in best}
    return {
        "arch": arch,
        "batch": batch,
        "input_size": list(input_size),
        "cnn_ms": best["cnn"] * 1e3,
        "adder_ms": best["adder"] * 1e3,
        "ratio": best["adder"] / best["cnn"],
        "cnn_peak_mb": peak["cnn"],
        "adder_peak_mb": peak["adder"],
        "memory_ratio": peak["adder"] / peak["cnn"],
    }


def _images(input_size: tuple[int, ...], batch: int, device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn((batch, *input_size), generator=generator, device=device)
    return images.to(memory_format=torch.channels_last)


def _peak_megabytes(
    task: str, name: str, arch: str, input_size: tuple[int, ...], batch: int, device: str
) -> float:
    """Peak memory of one network's steps; on the CPU it takes a process of its own."""
    arguments = (task, name, arch, input_size, batch, device, torch.get_num_threads())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, arguments)


def _run_alone(
    task: str,
    name: str,
    arch: str,
    input_size: tuple[int, ...],
    batch: int,
    device: str,
    threads: int,
) -> float:
    torch.set_num_threads(threads)
    blank(arch)  # imports what the architecture needs, before the measurement starts
    idle = _peak_of_process() if device == "cpu" else 0
    call = TASKS[task](name, twin(name, arch, device), _images(input_size, batch, device))
    for _ in range(2):
        call()
    peak = _peak_of_process() if device == "cpu" else torch.cuda.max_memory_allocated(device)
    return (peak - idle) / _MEGABYTE


def _peak_of_process() -> int:
    """Bytes of memory that this process held at most."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
