"""Timing side by side, and the machine it was done on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from adderize.ops import native
from adderize.ops.choice import choose
from adderize.progress import steps


def side_by_side(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 5, seconds: float = 0.2
) -> dict[str, float]:
    """Best seconds a call of each function.

    The functions take turns, so that a busy moment of the machine meets all of them, and each
    one's best round counts.

    Args:
        functions: calls to compare; each runs with torch's present number of threads.
        rounds: how many turns each one gets.
        seconds: about how long one turn lasts.
    """
    timers = {
        name: Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
        for name, function in functions.items()
    }
    for timer in timers.values():
        timer.timeit(1)
    numbers = {
        name: max(1, int(seconds / max(timer.timeit(1).mean, 1e-7)))
        for name, timer in timers.items()
    }
    best = dict.fromkeys(functions, float("inf"))
    for _ in steps(range(rounds), "rounds"):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(numbers[name]).mean)
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on: processor, threads, versions, backend."""
    choice = choose(device.type)
    facts: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backend": choice.name,
        "instruction_set": native.info()["cpu"],
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
