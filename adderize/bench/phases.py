"""Where the time of a training step goes: the adders' passes, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from adderize.bench import gpu

# What the profiler calls an op, and what it is here.
PHASES = {
    "adderize::adder_conv2d": "adder forward",
    "adderize::adder_conv2d_input_gradient": "input gradient",
    "adderize::adder_conv2d_weight_gradient": "filter gradient",
}
REST = "rest"


def phases(step: Callable[[], object], device: str, steps: int = 3) -> dict[str, float]:
    """Milliseconds a step of each phase, of the device's kernels; on the CPU of the calls.

    Kernels that run at the same time count each, and gaps between kernels count nowhere.
    """
    on_gpu = gpu.is_cuda(device)
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = summed(profiler.events() or (), on_gpu=on_gpu)
    return {name: microseconds / 1e3 / steps for name, microseconds in found.items()}


def summed(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Microseconds of each phase from the profiler's events.

    On a GPU a kernel is an event of its own, and belongs to each op around its launch.
    """
    found = dict.fromkeys(PHASES.values(), 0.0)
    total = 0.0
    for event in events:
        is_kernel = event.device_type != DeviceType.CPU
        if is_kernel:
            total += 0.0 if event.is_user_annotation else event.device_time_total
            continue
        if not on_gpu:
            total += event.self_cpu_time_total
        if event.name in PHASES and not _is_within_itself(event):
            time = event.device_time_total if on_gpu else event.cpu_time_total
            found[PHASES[event.name]] += time
    found[REST] = max(0.0, total - sum(found.values()))
    return found


def _is_within_itself(event: Any) -> bool:
    """Autocast calls an op again from within."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name == event.name:
            return True
        parent = parent.cpu_parent
    return False
