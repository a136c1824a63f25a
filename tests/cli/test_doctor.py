"""`adderize doctor` and the frame of the command line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from adderize import __version__
from adderize.bench import tuning
from adderize.cli import doctor, main
from adderize.ops import choice


def test_doctor_names_the_backend_of_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (cpu,) = [row for row in report["devices"] if row["device"] == "cpu"]
    found = choice.choose("cpu")
    assert (cpu["backend"], cpu["reason"]) == (found.name, found.reason)
    assert report["adderize"] == __version__


def test_doctor_prints_one_line_a_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert f"cpu        {choice.choose('cpu').name}: " in output
    assert "openmp" in output


def test_doctor_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert main(["doctor"]) == 0
    assert "gpu        torch finds none\n" in capsys.readouterr().out


def test_doctor_reports_forced_and_missing_backends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADDERIZE_BACKEND", "reference")
    assert main(["doctor"]) == 0
    assert "reference: forced by ADDERIZE_BACKEND" in capsys.readouterr().out
    monkeypatch.delenv("ADDERIZE_BACKEND")
    monkeypatch.setenv("ADDERIZE_REQUIRE_NATIVE", "1")
    monkeypatch.setattr(choice.native, "available", lambda: (False, "nothing was built"))
    assert main(["doctor"]) == 1
    assert "nothing was built" in capsys.readouterr().out


def test_doctor_sees_one_openmp_runtime() -> None:
    assert len(doctor.diagnose()["openmp"]) <= 1


def test_doctor_without_threadpoolctl_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert main(["doctor"]) == 0
    assert "openmp     unknown: threadpoolctl lists them" in capsys.readouterr().out
    assert doctor.diagnose()["openmp"] is None


@pytest.mark.parametrize(
    ("device", "found"),
    [
        ("cuda", ", and torch finds none on this machine; what is not timed a rule chooses"),
        ("cpu", ", not on cpu"),
    ],
)
def test_tiles_are_timed_on_a_gpu_only(
    device: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["doctor", "--tune", "resnet20", "--input", "3,32,32", "--device", device]
    assert main(command) == 1
    assert capsys.readouterr().err.endswith(f"tiles are timed on a CUDA device{found}\n")
    assert doctor.diagnose()["tiles"] is None


def test_a_network_is_tuned_in_one_step_a_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flow, with the CPU's kernels in place of timed ones."""
    seen: list[torch.dtype | None] = []
    kept: dict[str, str] = {}

    class Choosing:
        @staticmethod
        @contextlib.contextmanager
        def timing() -> Iterator[dict[str, str]]:
            yield {"forward": "a tile", "input gradient": "another"}

        @staticmethod
        def keep(device: torch.device, tiles: dict[str, str]) -> Path:
            kept.update(tiles)
            return tmp_path

        @staticmethod
        def kept(device: torch.device) -> tuple[Path, int]:
            return tmp_path, len(kept)

    step = tuning.training_step

    def watched(name: str, network: nn.Module, batch: torch.Tensor) -> Callable[[], None]:
        assert name == "adder" and batch.shape == (4, 3, 32, 32)
        run = step(name, network, batch)

        def look() -> None:
            on = torch.is_autocast_enabled("cpu")
            seen.append(torch.get_autocast_dtype("cpu") if on else None)
            run()

        return look

    monkeypatch.setattr(tuning, "_choosing", lambda device: Choosing)
    monkeypatch.setattr(tuning, "training_step", watched)
    command = ["doctor", "--tune", "tests.recipes.networks:batch_norms", "--batch", "4", "--input",
               "3,32,32", "--precision", "fp32", "bf16", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    assert seen == [None, torch.bfloat16] and len(kept) == 2
    captured = capsys.readouterr()
    assert "timed the tiles of 2 layers' kernels" in captured.err
    assert f"tiles      2 timed layers in {tmp_path}; a rule chooses for others" in captured.out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["doctor", "--loud"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert "usage: adderize" in captured.err and not captured.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"adderize {__version__}\n"
