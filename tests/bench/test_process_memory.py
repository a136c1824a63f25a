from __future__ import annotations

import subprocess
import sys

from adderize.bench import process_memory
from adderize.bench.process_memory import peak_of_process


def test_the_memory_of_the_process_that_started_it_is_not_its_own() -> None:
    # Run by its path: an import would take torch along.
    code = f"import runpy; print(runpy.run_path({process_memory.__file__!r})['peak_of_process']())"
    alone = int(subprocess.check_output([sys.executable, "-c", code]))
    assert 2e6 < alone < 1e8 < peak_of_process()
