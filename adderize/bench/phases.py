"""Where the time of a training step goes: the adders' passes, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

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
    on_gpu = torch.device(device).type == "cuda"
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = dict.fromkeys(PHASES.values(), 0.0)
    total = 0.0
    for event in profiler.events() or ():
        total += _microseconds(event, "self_", on_gpu)
        if event.name in PHASES and not _is_within_itself(event):
            found[PHASES[event.name]] += _microseconds(event, "", on_gpu)
    found[REST] = max(0.0, total - sum(found.values()))
    return {name: value / 1e3 / steps for name, value in found.items()}


def _microseconds(event: Any, own: str, on_gpu: bool) -> float:
    return float(getattr(event, f"{own}{'device' if on_gpu else 'cpu'}_time_total"))


def _is_within_itself(event: Any) -> bool:
    """Autocast calls an op again from within."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name == event.name:
            return True
        parent = parent.cpu_parent
    return False
