"""`adderize bench gpu-report` on the CPU: the whole path, tiny sizes, a clock of its own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from adderize import AdderConv2d, AdderizeError
from adderize.bench import cifar_epoch, gpu, gpu_limits, gpu_report, gpu_steps, layers
from adderize.bench.cifar_epoch import Epoch, measure_epoch
from adderize.bench.gpu_report import ON_CPU, ON_GPU, write_report
from adderize.bench.gpu_steps import Network
from adderize.bench.phases import phases, summed
from adderize.cli import main

TINY = ON_CPU._replace(
    networks=(Network("tests.recipes.networks:batch_norms", 2, (3, 32, 32)),), epochs=()
)


def test_a_machine_without_cuda_is_told_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*size: int, device: torch.device) -> None:
        raise RuntimeError("Found no NVIDIA driver\nand more")

    monkeypatch.setattr(torch, "empty", missing)
    assert main(["bench", "gpu-report", "-o", str(tmp_path / "report.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "adderize: --device cuda cannot be used: Found no NVIDIA driver"
    assert not (tmp_path / "report.json").exists()


def test_the_whole_path_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    epoch = {"name": "adder", "seconds_per_epoch": 1.5}
    monkeypatch.setattr(gpu_report, "ON_CPU", TINY._replace(epochs=ON_CPU.epochs))
    monkeypatch.setattr(gpu_report, "measure_epoch", lambda epoch_, left: epoch)
    assert main(["bench", "gpu-report", "--device", "cpu", "-o", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["machine"]["torch"] == torch.__version__ and report["limits"] is None
    assert [row["layer"] for row in report["layers"]] == [layer.name for layer in TINY.layers]
    for row in report["layers"]:
        for name in ("forward", "input gradient", "filter gradient"):
            assert {"convolution_tf32_ms", "convolution_bf16_ms", "adder_bf16_ms"} < set(row[name])
    assert [row["precision"] for row in report["steps"]] == ["fp32", "bf16"]
    for row in report["steps"]:
        assert row["ratio"] == pytest.approx(row["adder_ms"] / row["cnn_ms"])
        assert list(row["adder_phases_ms"]) == [
            "adder forward", "input gradient", "filter gradient", "rest"
        ]  # fmt: skip
        assert min(row["adder_phases_ms"].values()) > 0
    assert report["cifar"] == [epoch]
    assert report["failed"] == {} and report["left_out"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    out = capsys.readouterr().out
    assert "CIFAR epoch, adder: 1.50 s" in out and "filter gradient" in out


def _parts(monkeypatch: pytest.MonkeyPatch, *calls: Callable[[], Any]) -> None:
    sections = ("layers", "steps", "cifar", "layers", "steps")

    def parts(*arguments: Any) -> Iterator[gpu_report.Part]:
        for number, (section, call) in enumerate(zip(sections, calls, strict=False)):
            yield gpu_report.Part(section, str(number), call)

    monkeypatch.setattr(gpu_report, "_parts", parts)


def test_a_part_that_fails_is_named_and_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _parts(monkeypatch, lambda: 1 // 0, lambda: {"arch": "b"}, lambda: {"images": float("nan")})
    written = write_report(tmp_path / "report.json", "cpu")
    assert list(written["failed"]) == ["layers: 0"]
    assert written["failed"]["layers: 0"].startswith("ZeroDivisionError: integer division")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == [{"arch": "b"}] and report["cifar"] == [{"images": None}]


def test_what_no_time_is_left_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by ten seconds a look, two looks a part."""
    _parts(monkeypatch, *(lambda: {"done": True} for _ in range(5)))
    ticks = count(0, 10)
    report = write_report(tmp_path / "r.json", "cpu", 50.0, clock=lambda: float(next(ticks)))
    assert report["layers"] == report["steps"] == [{"done": True}]
    assert report["left_out"] == ["cifar: 2", "layers: 3", "steps: 4"]
    assert list(report["took"]) == ["layers: 0", "steps: 1"]
    assert sum(report["took"].values()) == report["seconds"] == 40.0


def test_a_part_that_takes_long_does_not_start_where_little_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = (
        gpu_report.Part("layers", name, lambda: {"done": True}, (least, 100.0))
        for name, least in (("long", 30.0), ("short", 5.0))
    )
    monkeypatch.setattr(gpu_report, "_parts", lambda *arguments: iter([long, short]))
    report = write_report(tmp_path / "r.json", "cpu", 20.0, clock=lambda: 0.0)
    assert report["left_out"] == ["layers: long"] and report["layers"] == [{"done": True}]


class _Worker:
    """In place of a process on a GPU: says how long each call may take."""

    limits: ClassVar[list[float]] = []
    stopped = 0

    def run(self, call: Callable[[], Any], limit: float) -> Any:
        self.limits.append(limit)
        return call()

    def stop(self) -> None:
        _Worker.stopped += 1


def test_parts_on_a_gpu_run_in_a_worker_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _parts(monkeypatch, lambda: {"done": True}, lambda: 1 // 0)
    compiled: list[float] = []
    monkeypatch.setattr(gpu_report, "machine_facts", lambda device: {})
    monkeypatch.setattr(gpu_report, "run_in_processes", lambda calls, limit: compiled.append(limit))
    monkeypatch.setattr(gpu_report, "Worker", _Worker)
    ticks = count(0, 10)
    report = write_report(tmp_path / "r.json", "cuda", 60.0, clock=lambda: float(next(ticks)))
    assert compiled == [24.0] and _Worker.stopped == 1
    assert _Worker.limits == [70.0, 50.0]
    assert report["layers"] == [{"done": True}] and list(report["failed"]) == ["steps: 1"]
    assert list(report["took"]) == ["compiling", "layers: 0", "steps: 1"]


def test_results_are_in_the_file_before_the_last_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    _parts(monkeypatch, lambda: {"first": True}, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "report.json", "cpu")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["layers"] == [{"first": True}] and report["left_out"] == ["steps: 1"]


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _parts(monkeypatch, dict)
    with pytest.raises(AdderizeError, match=r"cannot write to /nowhere/report\.json"):
        write_report(Path("/nowhere/report.json"), "cpu")


def test_another_device_than_the_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdderizeError, match="set CUDA_VISIBLE_DEVICES=1 and give --device cuda"):
        write_report(tmp_path / "report.json", "cuda:1")


def test_parts_on_a_gpu_come_in_the_order_of_their_use() -> None:
    parts = list(gpu_report._parts(ON_GPU, "cuda"))
    assert [part.section for part in parts] == [
        "limits", *["layers"] * 13, *["steps"] * 2, "cifar", "cifar", *["steps"] * 10, "cifar"
    ]  # fmt: skip
    assert len({str(part) for part in parts}) == len(parts)
    assert {network.batch for network in ON_GPU.networks if not network.size} == {128}
    for part in parts:
        assert pickle.loads(pickle.dumps(part.measure)).func is part.measure.func


def test_what_is_compiled_first_runs_each_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where nothing is to be compiled; the epochs by their options."""
    ran, limits = list[Any](), list[float]()

    def epoch(epoch: Epoch, limit: float) -> None:
        ran.append(epoch)
        limits.append(limit)

    monkeypatch.setattr(gpu_report, "measure_epoch", epoch)
    monkeypatch.setattr(gpu_report, "run_step", lambda *what: ran.append(what))
    monkeypatch.setattr(gpu_report, "run_passes", lambda *what: ran.append(what))
    monkeypatch.setattr(gpu_report, "time", SimpleNamespace(monotonic=lambda: 5.0))
    for call in gpu_report._untimed(ON_CPU, "cpu", 9.0):
        call()
    assert limits == [4.0]
    assert ran[0].options[-4:] == ("--epochs", "1", "--max-steps", "3")
    (network,) = ON_CPU.networks
    assert ran[1:3] == [(network, "fp32", "cpu"), (network, "bf16", "cpu")]
    assert ran[3:] == [(layer, "cpu") for layer in ON_CPU.layers]


def test_the_passes_of_a_layer_and_a_step_run_without_being_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    def passes(name: str) -> dict[str, Callable[[], object]]:
        return {"forward": lambda: called.append(name)}

    rivals = {name: passes(name) for name in ("convolution", "adder", "adder_bf16")}
    monkeypatch.setattr(layers, "_rivals", lambda *arguments, **flags: rivals)
    layers.run_passes(ON_CPU.layers[0], "cpu")
    assert called == ["adder", "adder_bf16"]
    gpu_steps.run_step(TINY.networks[0], "bf16", "cpu")


def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A recipe in place of the real one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").touch()
    (tmp_path / "recipes" / "cifar.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


RECIPE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
assert sys.argv[1:5] == ["--data", "fake:64", "--layers", "cnn"]
metrics = {"history": [{"images/s": 1.0}, {"images/s": 32.0}], "peak_memory_mb": 5}
(folder / "metrics.json").write_text(json.dumps(metrics))
"""


def test_the_last_epoch_of_the_recipe_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _process(tmp_path, monkeypatch, RECIPE)
    row = measure_epoch(Epoch("cnn", "cnn", 64, ("--epochs", "2")), 60.0)
    assert row["seconds_per_epoch"] == 50_000 / 32 and row["peak_mb"] == 5 and row["name"] == "cnn"


def test_recipes_that_fail_hang_or_are_missing_are_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _process(tmp_path, monkeypatch, "import sys, time\ntime.sleep(60 * ('cnn' in sys.argv))\n1 / 0")
    with pytest.raises(AdderizeError, match="it failed with 1: ZeroDivisionError"):
        measure_epoch(Epoch("a", "adder", 64, ()), 60.0)
    with pytest.raises(AdderizeError, match="it was stopped after 0 s"):
        measure_epoch(Epoch("a", "cnn", 64, ()), 0.3)
    monkeypatch.setattr(cifar_epoch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AdderizeError, match="run it in a checkout"):
        measure_epoch(Epoch("a", "cnn", 64, ()), 1.0)


def test_phases_of_a_step_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(AdderConv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 4, 1))
    images = torch.randn(4, 8, 24, 24, requires_grad=True)

    def step() -> None:
        with gpu.precision("bf16", "cpu"):
            network(images).sum().backward()

    found = phases(step, "cpu", steps=2)
    assert list(found) == ["adder forward", "input gradient", "filter gradient", "rest"]
    assert min(found.values()) > 0
    only = phases(lambda: AdderConv2d(8, 32, 3)(images.detach()), "cpu", steps=2)
    assert only["input gradient"] == only["filter gradient"] == 0 < only["adder forward"]


def _event(name: str, kernels: float, parent: Any = None, **more: Any) -> Any:
    """Of the profiler on a GPU."""
    return SimpleNamespace(**{
        "name": name, "cpu_parent": parent, "device_type": DeviceType.CPU,
        "device_time_total": kernels, "is_user_annotation": False, **more,
    })  # fmt: skip


def test_phases_on_a_gpu_count_each_kernel_once() -> None:
    """An op within itself (autocast), its kernel, a convolution's kernel, and an annotation."""
    on_gpu = {"device_type": DeviceType.CUDA}
    outer = _event("adderize::adder_conv2d", 5.0)
    events = [
        outer,
        _event("adderize::adder_conv2d", 5.0, _event("aten::to", 5.0, outer)),
        _event("forward_kernel", 5.0, **on_gpu),
        _event("aten::convolution", 3.0),
        _event("convolution_kernel", 3.0, **on_gpu),
        _event("Optimizer.step#SGD.step", 8.0, is_user_annotation=True, **on_gpu),
    ]
    assert summed(events, on_gpu=True) == {
        "adder forward": 5.0, "input gradient": 0.0, "filter gradient": 0.0, "rest": 3.0
    }  # fmt: skip


def test_no_limit_is_measured_without_a_gpu() -> None:
    assert gpu_limits.limits("cpu") is None
    assert gpu_limits.Limits(2.0, 1.0).both == pytest.approx(4 / 3)
