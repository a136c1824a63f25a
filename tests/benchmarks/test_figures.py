"""Figures by machine: what a file may hold, and the tables that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adderize.errors import AdderizeError
from benchmarks import collect, machines, pages, tables
from benchmarks.cells import layer, span
from benchmarks.machines import Machine

MACHINES = machines.load_all()


def small() -> Machine:
    return {
        "machine": {"name": "Abacus", "versions": {"torch": "2.6"}, "notes": ["One run."]},
        "limits": {"portable": {"multiply": 2e9}},
        "step": [{"arch": "resnet18", "batch": 8, "ratio": [1.5, 1.25]}],
    }


def test_tables_of_the_documentation_are_those_of_the_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert pages.main(["--check"]) == 0, (
        f"{capsys.readouterr().out}rewrite them: python -m benchmarks.pages"
    )


@pytest.mark.parametrize("name", MACHINES)
def test_a_file_is_written_as_it_is_read(name: str) -> None:
    assert (machines.FOLDER / f"{name}.json").read_text() == machines.text(MACHINES[name])


def test_gpus_come_last() -> None:
    assert list(MACHINES)[-1] == "h100"


def test_a_changed_figure_makes_a_page_stale() -> None:
    page = "before\n<!-- figures overview resnet18 -->\nold\n<!-- end of figures -->\nafter\n"
    text = pages.rewritten(page, {"abacus": small()})
    assert "| Abacus |" in text and "| 1.25 to 1.5 |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert pages.rewritten(text, {"abacus": small()}) == text


@pytest.mark.parametrize("label", ["abacus", "abacus stepp", "sundial step"])
def test_a_table_that_there_is_not(label: str) -> None:
    page = f"<!-- figures {label} -->\n<!-- end of figures -->\n"
    with pytest.raises(AdderizeError, match=f"no table '{label}'; expected one of the machines"):
        pages.rewritten(page, {"abacus": small()})


def test_a_table_without_an_end() -> None:
    with pytest.raises(AdderizeError, match="has no end"):
        pages.rewritten("<!-- figures overview resnet18 -->\n", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": None}, 'there is no "machine"'),
        ({"machine": {"versions": {}}}, "machine: 'name' is missing"),
        ({"machine": {"name": 5}}, "machine.name is 5; expected a text"),
        ({"machine": {"name": "a", "threads": 0}}, "machine.threads is 0; expected an integer"),
        ({"stpe": []}, "'stpe' is unknown; expected some of layers, rates, step"),
        ({"step": {}}, "step: expected a list of rows"),
        ({"step": [{"batch": 8}]}, r"step\[0\]: 'arch' is missing"),
        ({"step": [{"arch": "a", "rato": 1}]}, r"step\[0\]: 'rato' is unknown"),
        ({"step": [{"arch": "a", "ratio": "fast"}]}, r"step\[0\].ratio is 'fast'; expected a num"),
        ({"step": [{"arch": "a", "ratio": []}]}, r"step\[0\].ratio is \[\]; expected a number"),
        ({"layers": [{"layer": "a", "forward": 1}]}, "forward is 1; expected names and their fig"),
        ({"limits": {"avx2": 5}}, "limits: expected names and their figures"),
    ],
)
def test_wrong_files(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(small() | change))
    with pytest.raises(AdderizeError, match=message) as error:
        machines.load(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "wrong.json"
    file.write_text("{")
    with pytest.raises(AdderizeError, match="cannot be read as JSON"):
        machines.load(file)


def _report(what: str, rows: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
    facts = {"processor": "Abacus", "cores": 2, "threads": 1, "features": [], "torch": "2.6"}
    facts |= {"versions": {"adderize": "0.1.0"}, "date": "2026-11-26"}
    return {"what": what, "machine": facts | about, "rows": rows}


def test_reports_of_one_machine_become_its_file() -> None:
    reports = [
        _report("limits", [{"instruction_set": "avx2", "multiply": 123456.7}]),
        _report("step", [{"arch": "resnet18", "ratio": 1.23456}], threads=2),
        _report("inference", [{"arch": "resnet18", "ms": {"adder": 2.0}}]),
    ]
    machine = collect.collected("Abacus, 2 cores", ["Busy."], reports)
    machines.check(machine, "abacus")
    assert machine["machine"]["threads"] == 2 and machine["machine"]["versions"]["torch"] == "2.6"
    assert machine["limits"] == {"avx2": {"multiply": 123500.0}}
    assert machine["step"][0]["ratio"] == 1.235 and machine["int8"][0]["ms"] == {"adder": 2.0}


def _step_on_a_gpu(arch: str, batch: int, side: int, precision: str) -> dict[str, Any]:
    kernels = {"adder forward": 3.0, "input gradient": 4.0, "filter gradient": 1.0, "rest": 2.0}
    return {
        "arch": arch, "batch": batch, "input_size": [3, side, side], "precision": precision,
        "cnn_ms": 5.0, "adder_ms": 12.5, "adder_phases_ms": kernels,
    }  # fmt: skip


def test_a_report_of_a_gpu_becomes_its_file_and_tables() -> None:
    steps = [
        _step_on_a_gpu(*network, precision)
        for network in (("timm:convnext_tiny", 128, 224), ("resnet20", 256, 32))
        for precision in ("fp32", "bf16")
    ]
    options = ["--batch-size", "256", "--compile", "reduce-overhead"]
    epochs = [
        {"layers": "adder", "options": options, "seconds_per_epoch": 2.5},
        {"layers": "adder", "options": options[:2], "seconds_per_epoch": 9.0},
    ]
    rates = dict.fromkeys(("forward", "input_gradient"), 1e13)
    report = _report("", [], gpu="Brass", cuda="13.0") | {
        "limits": {f"{name}_pairs_per_second": rate for name, rate in rates.items()},
        "layers": [], "steps": steps, "cifar": epochs,
    }  # fmt: skip
    del report["what"]
    machine = collect.collected("Brass", [], [report])
    machines.check(machine, "brass")
    assert machine["cuda_graph"] == [{"arch": "resnet20", "batch": 256, "adder_s_per_epoch": 2.5}]
    names = [row[0] for row in tables.gpu_step(machine).rows]
    assert names == ["ConvNeXt-T", "ResNet-20, batch 256, 32x32"]
    assert tables.gpu_phases(machine).rows[3] == [
        "ResNet-20, batch 256, 32x32, bf16", "3.0", "4.0", "1.0", "2.0", "10.0", "12.5"
    ]  # fmt: skip


def test_a_report_of_a_gpu_that_ran_out_of_time_becomes_tables_too() -> None:
    report = _report("", [], gpu="Brass", cuda="13.0") | {
        "limits": None, "layers": [], "cifar": [],
        "steps": [_step_on_a_gpu("resnet18", 128, 224, precision="bf16")],
    }  # fmt: skip
    del report["what"]
    machine = collect.collected("Brass", [], [report])
    machines.check(machine, "brass")
    assert tables.gpu_step(machine).rows == [["ResNet-18", "", "", "5.0", "12.5"]]
    assert tables.overview({"brass": machine}, "resnet18").rows[0][1] == "2.5 in bf16"


def test_reports_of_two_machines_are_refused() -> None:
    reports = [_report("step", []), _report("step", [], processor="Sundial")]
    with pytest.raises(AdderizeError, match="differ in processor: Abacus and Sundial"):
        collect.collected("Abacus", [], reports)


def test_texts_of_figures() -> None:
    assert span([74e9, 79e9], 1e9) == "74 to 79" and span(1.69) == "1.69"
    assert layer("3x3/2  64-128, 56x56, b8") == "3x3, stride 2, 64 to 128 channels, 56x56, batch 8"
    assert layer("an unknown one") == "an unknown one"
