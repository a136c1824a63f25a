"""The processor's limits: what is measured beside what; never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adderize.bench import processor_limits
from adderize.bench.layers import PASSES
from adderize.cli import main
from adderize.ops import choice, native
from adderize.ops.native.register_loops import LOOPS

if not native.available()[0]:
    pytest.skip(native.available()[1], allow_module_level=True)


def test_every_pass_of_a_layer_has_a_loop() -> None:
    assert set(processor_limits.LOOP_OF_PASS) == set(PASSES)
    assert set(processor_limits.LOOP_OF_PASS.values()) == set(LOOPS)


def test_limits_take_turns_with_what_stands_beside_them() -> None:
    calls: list[str] = []
    best, rates = processor_limits.beside(
        {"f": lambda: calls.append("f")}, ["forward", "8 bits"], rounds=2, seconds=1e-6
    )
    assert set(best) == {"f"} and len(calls) >= 4
    assert set(rates) == {"forward", "8 bits"} and min(rates.values()) > 0


def test_time_at_the_limits_by_hand() -> None:
    assert processor_limits.limit_ms(
        3000, {"forward": 1e6, "input gradient": 5e5}
    ) == pytest.approx(3 + 6)


def test_another_backend_has_no_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADDERIZE_BACKEND", "reference")
    choice._warn_of_slowness.cache_clear()
    assert (
        processor_limits.beside({"f": lambda: None}, ["forward"], rounds=1, seconds=1e-6)[1] == {}
    )
    command = ["bench", "layers", "--only", "120-84", "--rounds", "1", "--seconds", "0.001"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "limits are left out (they are those of the native backend; " in output
    assert "%" not in output.splitlines()[-1]
    assert main(["bench", "limits"]) == 1
    assert "no limits to measure" in capsys.readouterr().err


def test_the_command_lists_every_instruction_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, file = native.info()["cpu"], tmp_path / "limits.json"
    command = ["bench", "limits", "--rounds", "1", "--seconds", "0.001", "--json", str(file)]
    assert main(command) == 0
    *_, header, multiply, _, _, _, last = capsys.readouterr().out.splitlines()
    assert header.endswith(str(native.info()["cpus"][-1]))  # type: ignore[index]
    assert multiply.startswith("multiply") and " x F " in multiply and last.startswith("bytes")
    report = json.loads(file.read_text())
    assert report["what"] == "limits" and report["machine"]["threads"] >= 1
    assert [row["instruction_set"] for row in report["rows"]] == native.info()["cpus"]
    assert native.info()["cpu"] == before
