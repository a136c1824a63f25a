"""Whole networks: a training step or inference of a CNN and of its adder twin."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from adderize.bench import gpu, processor_limits
from adderize.bench.gpu_limits import limits
from adderize.bench.layers import TRAINING_PASSES
from adderize.bench.networks import TASKS, TWINS, noise, twin
from adderize.bench.process_memory import peak_of_process
from adderize.bench.timing import side_by_side
from adderize.evaluation import evaluation
from adderize.layers import Adder
from adderize.models.by_name import blank

_SMALL, _SMALL_INPUT = "lenet5_bn", (1, 32, 32)
_PASSES = {"step": TRAINING_PASSES, "inference": TRAINING_PASSES[:1]}


def measure(
    task: str, arch: str, input_size: tuple[int, ...], batch: int, device: str, **timing: Any
) -> dict[str, Any]:
    """Milliseconds and peak memory of both networks, and the ratios adder / cnn.

    On the CPU the row has the milliseconds that the adder layers take at the processor's limits,
    and what percentage of the whole adder network's they are.

    On a CUDA device these are float32 without TF32, and the row also has the milliseconds of both
    in TF32 and under bfloat16 autocast, and the pairs a second of the adder layers (forward and
    input gradient, over the time of everything) with their percentage of the measured `limits`.

    Args:
        task: ``"step"`` (training) or ``"inference"``.
        arch: a name that `adderize.models.by_name.build` takes.
        input_size: (C, H, W).
        batch: images a step.
        device: where.
        timing: `rounds` and `seconds` of `adderize.bench.timing.side_by_side`.
    """
    images = noise(input_size, batch, device)
    networks = {name: twin(name, arch, device) for name in TWINS}
    calls = {name: TASKS[task](name, network, images) for name, network in networks.items()}
    on_gpu = gpu.is_cuda(device)
    limit: dict[str, float] = {}
    if on_gpu:
        best = side_by_side(_in_every_precision(calls), **timing)
    else:
        best, limit = processor_limits.beside(calls, _PASSES[task], **timing)
    peak = {name: _peak_megabytes(task, name, arch, input_size, batch, device) for name in TWINS}
    row: dict[str, Any] = {
        "arch": arch,
        "batch": batch,
        "input_size": list(input_size),
        "cnn_ms": best["cnn"] * 1e3,
        "adder_ms": best["adder"] * 1e3,
        "ratio": best["adder"] / best["cnn"],
        "cnn_peak_mb": peak["cnn"],
        "adder_peak_mb": peak["adder"],
        # A network smaller than what the process had free takes nothing.
        "memory_ratio": peak["adder"] / peak["cnn"] if peak["cnn"] else None,
    }
    if on_gpu:
        passes = 2 if task == "step" else 1
        rate = passes * adder_pairs(networks["adder"], images) / best["adder"]
        row |= {f"{name}_ms": seconds * 1e3 for name, seconds in best.items()}
        row["pairs_per_second"] = rate
        if most := limits(device):
            row["percent_of_limit"] = 100 * rate / (most.both if passes == 2 else most.forward)
    if limit:
        pairs = adder_pairs(networks["adder"], images)
        row["limit_ms"] = processor_limits.limit_ms(pairs, limit)
        row["percent_of_limit"] = 100 * row["limit_ms"] / row["adder_ms"]
    return row


def _in_every_precision(calls: dict[str, Callable[[], None]]) -> dict[str, Callable[[], object]]:
    rivals = {name: gpu.in_precision("fp32", call) for name, call in calls.items()}
    for precision in ("tf32", "bf16"):
        for name, call in calls.items():
            rivals[f"{name}_{precision}"] = gpu.in_precision(precision, call)
    return rivals


def adder_pairs(network: nn.Module, images: Tensor) -> int:
    """Input-filter pairs of the adder layers in one forward pass."""
    pairs = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal pairs
        weight = module.get_parameter("weight")
        pairs += output.numel() * weight[0].numel()

    with ExitStack() as hooks, evaluation(network), torch.inference_mode():
        for layer in network.modules():
            if isinstance(layer, Adder):
                hooks.enter_context(layer.register_forward_hook(add))
        network(images)
    return pairs


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
    # What the architecture and a first step import and load is no memory of the network.
    blank(arch)
    TASKS[task](name, twin(name, _SMALL, device), noise(_SMALL_INPUT, 1, device))()
    idle = peak_of_process() if device == "cpu" else 0
    call = TASKS[task](name, twin(name, arch, device), noise(input_size, batch, device))
    for _ in range(2):
        call()
    peak = peak_of_process() if device == "cpu" else torch.cuda.max_memory_allocated(device)
    return (peak - idle) / gpu.MEGABYTE
