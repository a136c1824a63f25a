"""Triton's kernels compiled in several processes at once, before they are timed.

A kernel takes seconds of one core to compile. Triton keeps the result in a folder that all
processes share, so calls that nobody times leave it ready for those that are timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from adderize.progress import steps

# Each holds a network and its activations on the device.
_MOST_PROCESSES = 8


def run_in_processes(calls: Iterable[Callable[[], Any]]) -> None:
    """Runs each call in one of several processes; what fails there fails again, and is told, later.

    Args:
        calls: picklable, such as partials of a module's functions; results are dropped.
    """
    calls = list(calls)
    cores = os.cpu_count() or 1
    processes = max(1, min(_MOST_PROCESSES, cores, len(calls)))
    context = multiprocessing.get_context("spawn")
    threads = (max(1, cores // processes),)
    with (
        contextlib.suppress(BrokenProcessPool),
        ProcessPoolExecutor(processes, context, torch.set_num_threads, threads) as pool,
    ):
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        for future in steps(as_completed(futures), "compiling", len(futures)):
            future.exception()
