"""Calls in several processes, whose results and failures nobody waits for."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from adderize.bench.compiling import run_in_processes


def _leave_a_file(folder: Path, name: str) -> None:
    (folder / name).write_text(str(os.getpid()))


def _fail() -> None:
    raise ValueError("as it will be told later")


def test_every_call_runs_in_another_process_whatever_fails_beside_it(tmp_path: Path) -> None:
    calls = [partial(_leave_a_file, tmp_path, name) for name in "abc"]
    run_in_processes([calls[0], _fail, *calls[1:]])
    processes = {int(file.read_text()) for file in tmp_path.iterdir()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c"]
    assert os.getpid() not in processes


def test_a_process_that_dies_is_no_error() -> None:
    run_in_processes([partial(os._exit, 3)])


def test_what_takes_too_long_is_ended() -> None:
    before = time.monotonic()
    run_in_processes([partial(time.sleep, 100)] * 3, limit=2.0)
    assert time.monotonic() - before < 60
