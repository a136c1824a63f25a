"""Calls in a process of its own: results, and what fails, dies or hangs there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from adderize import AdderizeError
from adderize.bench.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


def _sleeping_child(note: Path) -> None:
    """Says which process it has started, and waits for it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    note.write_text(str(child.pid))
    child.wait()


def _gone(process: int) -> bool:
    """Ended; whoever inherits it may not have asked yet how."""
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_calls_share_a_process_until_one_fails(worker: Worker) -> None:
    first = worker.run(os.getpid, 60.0)
    assert worker.run(os.getpid, 60.0) == first != os.getpid()
    with pytest.raises(AdderizeError, match=r"ZeroDivisionError: .*by zero"):
        worker.run(partial(divmod, 1, 0), 60.0)
    assert worker.run(os.getpid, 60.0) != first
    with pytest.raises(AdderizeError, match="its process ended with 3"):
        worker.run(partial(os._exit, 3), 60.0)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_call_that_hangs_is_stopped_with_what_it_started(worker: Worker, tmp_path: Path) -> None:
    note = tmp_path / "process"
    worker.run(os.getpid, 60.0)
    with pytest.raises(AdderizeError, match="it was stopped after 5 s"):
        worker.run(partial(_sleeping_child, note), 5.0)
    started, end = int(note.read_text()), time.monotonic() + 10
    while not _gone(started):
        assert time.monotonic() < end, "what the call had started goes on"
        time.sleep(0.1)
