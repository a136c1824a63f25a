"""Timing side by side, and the machine it was done on."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adderize import __version__
from adderize.ops import native
from adderize.ops.choice import choose
from adderize.progress import steps

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

# Of x86: what the kernels or their rivals use.
_FEATURES = frozenset(
    ("fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
)


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
    timers = {name: _timer(function) for name, function in functions.items()}
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


def _timer(function: Callable[[], object]) -> Timer:
    # Torch's timers bring its builder of extensions, which warns of a CUDA toolkit without a GPU.
    log = logging.getLogger("torch.utils.cpp_extension")
    before, log.disabled = log.disabled, True
    try:
        from torch.utils.benchmark import Timer
    finally:
        log.disabled = before
    return Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on: processor, threads, versions, backend, day."""
    choice = choose(device.type)
    about = _about_processor()
    facts: dict[str, Any] = {
        "processor": _processor(about),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backend": choice.name,
        "instruction_set": native.info().get("cpu"),
        "features": [name for name in about.get("flags", "").split() if name in _FEATURES],
        "versions": _versions(),
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _versions() -> dict[str, str]:
    versions = {"adderize": __version__}
    for name in ("onnxruntime", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _about_processor() -> dict[str, str]:
    """What Linux says of the first processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text().partition("\n\n")[0]
    entries = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in entries}


def _processor(about: dict[str, str]) -> str:
    name = about.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in about and "model" in about:
        name += f" (family {about['cpu family']}, model {about['model']})"
    return name
