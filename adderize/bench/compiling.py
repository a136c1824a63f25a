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


def run_in_processes(calls: Iterable[Callable[[], Any]], limit: float | None = None) -> None:
    """Runs each call in one of several processes; what fails there fails again, and is told, later.

    Args:
        calls: picklable, such as partials of a module's functions; results are dropped.
        limit: seconds after which the processes are ended; what they have left is dropped too.
    """
    calls = list(calls)
    cores = os.cpu_count() or 1
    processes = max(1, min(_MOST_PROCESSES, cores, len(calls)))
    context = multiprocessing.get_context("spawn")
    threads = (max(1, cores // processes),)
    others = set(multiprocessing.active_children())
    with (
        contextlib.suppress(BrokenProcessPool, TimeoutError),
        ProcessPoolExecutor(processes, context, torch.set_num_threads, threads) as pool,
    ):
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        try:
            for future in steps(as_completed(futures, limit), "compiling", len(futures)):
                future.exception()
        except TimeoutError:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
