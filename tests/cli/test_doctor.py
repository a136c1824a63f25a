"""`adderize doctor` and the frame of the command line."""

from __future__ import annotations

import json
import sys

import pytest

from adderize import __version__
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
