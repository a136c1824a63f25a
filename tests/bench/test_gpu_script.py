"""benchmarks/gpu.sh with a Python that only says what it was asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
PYTHON = """#!/bin/sh
case "$*" in
    *pytest\\ -m\\ gpu*) echo "$PYTHONPATH $*"; exit 1 ;;
    *doctor*) echo "tuned in $ADDERIZE_CACHE" ;;
    *gpu-report*) echo "asked: $*" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


PATIENT = """#!/bin/sh
case "$*" in
    *"-m pytest"*) trap 'kill $!; echo "half of it"; exit 2' INT; sleep 60 & wait ;;
esac
"""


def _run(
    tmp_path: Path, *arguments: str, python_text: str = PYTHON
) -> subprocess.CompletedProcess[str]:
    python = tmp_path / "python"
    python.write_text(python_text)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": "/carried"}
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_step_runs_and_failures_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = _run(tmp_path, str(folder))
    lines = (folder / "summary.txt").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == [
        "kernels: exit status 1", "report: exit status 0",
        "tests: exit status 1", "tune: exit status 0",
    ]  # fmt: skip
    assert done.returncode == 1 and done.stdout.splitlines() == lines
    for name, tests in (
        ("kernels", "tests/ops/test_triton_gpu"),
        ("tests", "tests/bench/test_on_gpu"),
    ):
        path, *asked = (folder / f"{name}.log").read_text().split()
        assert path == f"{SCRIPT.parents[1]}:/carried" and asked[-1] == f"{tests}.py"
    assert (folder / "tune.log").read_text() == f"tuned in {folder}/cache\n"
    asked = (folder / "report.log").read_text()
    found = re.search(rf"bench gpu-report -o {folder}/report\.json --budget (\d+)", asked)
    assert found and 440 < int(found[1]) <= 470


def test_a_step_that_runs_out_of_time_says_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = _run(tmp_path, str(folder), "2", python_text=PATIENT)
    assert done.stdout.startswith("kernels: exit status 124, ")
    assert (folder / "kernels.log").read_text() == "half of it\n"


def test_no_step_starts_when_the_time_is_up(tmp_path: Path) -> None:
    done = _run(tmp_path, str(tmp_path / "out"), "0")
    assert done.returncode == 1 and done.stdout.count("left out for want of time") == 4


LACKING = """#!/bin/sh
echo "Traceback (most recent call last):
ModuleNotFoundError: No module named 'timm'" >&2
exit 1
"""


def test_what_is_missing_and_left_out_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, str(tmp_path / "out"), "0", python_text=LACKING)
    missing, install, *_, tune = done.stdout.splitlines()
    assert missing.endswith("/python: ModuleNotFoundError: No module named 'timm'")
    assert install.startswith("install: left out for want of time; it is: 'env' 'PIP_RETRIES=1' ")
    assert tune.startswith("tune: left out for want of time; it is: ")
    assert "'doctor' '--tune' 'resnet18'" in tune


def test_what_only_processes_need_is_not_left_in_the_folder(tmp_path: Path) -> None:
    tiles = tmp_path / "out" / "cache" / "tiles"
    tiles.mkdir(parents=True)
    for file in (tiles / "H100.lock", tiles / "H100.json", tmp_path / "out" / "r.7.unfinished"):
        file.touch()
    _run(tmp_path, str(tmp_path / "out"), "0")
    assert [file.name for file in tiles.iterdir()] == ["H100.json"]
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_file()] == ["summary.txt"]


def test_the_folder_is_asked_for(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.returncode == 2 and "usage: " in done.stderr
