"""`adderize bench`: what is measured, and how; never how fast."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdderConv2d
from adderize.bench import gpu, layers, networks, twins
from adderize.bench.gpu_limits import Limits
from adderize.bench.layers import LAYERS, PASSES, Layer, measure
from adderize.bench.timing import side_by_side
from adderize.cli import bench, main
from adderize.ops import native
from adderize.ops.geometry import Geometry

native_library = pytest.mark.skipif(not native.available()[0], reason="no native library")
FAST = ["--rounds", "1", "--seconds", "0.001"]


def test_functions_take_turns_and_the_best_round_counts() -> None:
    calls: list[str] = []

    def sleep(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    best = side_by_side(
        {"slow": lambda: sleep("slow", 0.02), "fast": lambda: sleep("fast", 0.001)},
        rounds=2,
        seconds=0.02,
    )
    assert best["slow"] > best["fast"] > 0.0009
    turns = [name for name, before in zip(calls[1:], calls, strict=False) if name != before]
    assert len(turns) >= 4


def test_the_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    side_by_side({"f": lambda: seen.append(torch.get_num_threads())}, rounds=1, seconds=0.001)
    torch.set_num_threads(before)
    assert set(seen) == {1}


def test_pairs_by_hand() -> None:
    assert Layer("3x3", 2, 4, 8, 6, 3, Geometry.of(padding=1)).pairs == 2 * 6 * 8 * 8 * 4 * 9
    assert Layer("3x3/2", 1, 4, 9, 6, 3, Geometry.of(stride=2)).pairs == 6 * 4 * 4 * 4 * 9
    assert Layer("channelwise", 1, 4, 8, 4, 3, Geometry.of(1, 1, 1, 4)).pairs == 4 * 8 * 8 * 9
    assert Layer("dilated", 1, 2, 9, 3, 3, Geometry.of(dilation=2)).pairs == 3 * 5 * 5 * 2 * 9


@native_library
def test_networks_stand_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "_peak_megabytes", lambda *arguments: 1.0)
    network = ("inference", "squeezenet1_1", (3, 64, 64), 2, "cpu")
    row = twins.measure(*network, rounds=1, seconds=0.001)
    assert row["percent_of_limit"] == pytest.approx(100 * row["limit_ms"] / row["adder_ms"])


def test_layer_names_are_unique() -> None:
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)


def test_a_row_has_both_times_and_their_ratio() -> None:
    layer = Layer("small", 2, 4, 6, 4, 3, Geometry.of(padding=1, groups=2))
    (row,) = measure((layer,), rounds=1, seconds=0.001)
    for name in PASSES:
        cell = row[name]
        assert cell["ratio"] == pytest.approx(cell["adder_ms"] / cell["convolution_ms"])
        if native.available()[0]:
            percent = 100 * cell["limit_ms"] / cell["adder_ms"]
            assert cell["percent_of_limit"] == pytest.approx(percent)


def test_layers_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.json"
    assert main(["bench", "layers", "--only", "120-84", *FAST, "--json", str(file)]) == 0
    header, *_, row = capsys.readouterr().out.splitlines()
    assert "threads" in header and row.startswith("LeNet linear  120-84")
    assert row.count("%") == len(PASSES)
    report = json.loads(file.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert [row["layer"] for row in report["rows"]] == ["LeNet linear  120-84, b256"]


def test_figures_of_an_earlier_run_and_those_measured_before_an_error_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "steps.json"
    file.write_text("earlier")
    names = ["bench", "step", "--json", str(file), "--input", "3,64,64", "--arch", "squeezenet1_1"]
    assert main([*names, "resnet19"]) == 1 and file.read_text() == "earlier"
    assert "network  " not in capsys.readouterr().out

    def fails_later(task: str, arch: str, *rest: object, **timing: object) -> dict[str, object]:
        if arch == "vgg11":
            raise KeyboardInterrupt
        return {**dict.fromkeys(("cnn_ms", "cnn_peak_mb", "adder_ms", "adder_peak_mb"), 1.0),
                "memory_ratio": None, "ratio": 1.0}  # fmt: skip

    monkeypatch.setattr(twins, "measure", fails_later)
    assert main([*names, "vgg11"]) == 130
    assert [row["ratio"] for row in json.loads(file.read_text())["rows"]] == [1.0]


def test_layers_are_chosen_as_the_help_and_the_error_write_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def record(chosen: tuple[Layer, ...], *rest: object, **options: object) -> list[object]:
        measured.extend(layer.name for layer in chosen)
        return []

    monkeypatch.setattr(layers, "measure", record)
    assert main(["bench", "layers", "--only", "no such layer"]) == 1
    listed = capsys.readouterr().err.strip().split("there are: ")[1].split("; ")
    assert len(listed) == len(LAYERS)
    for name, layer in zip(listed, LAYERS, strict=True):
        assert main(["bench", "layers", "--only", name]) == 0
        assert layer.name in measured
        measured.clear()
    (example,) = (shlex.split(line) for line in bench.EXAMPLES if "--only" in line)
    assert main(example[1:]) == 0 and measured


@pytest.mark.parametrize("task", ["step", "inference"])
def test_network_commands_print_time_and_memory(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {"cnn": 100.0, "adder": 150.0}
    monkeypatch.setattr(twins, "_peak_megabytes", lambda task, name, *rest: peaks[name])
    command = ["bench", task, "--arch", "squeezenet1_1", "--batch", "2", "--input", "3,64,64"]
    assert main([*command, *FAST]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("squeezenet1_1") and row.count("MB") == 2 and "1.50x, " in row
    assert row.endswith("% of the limit")


def test_8_bit_inference_stands_beside_its_rivals(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "inference", "--arch", "adderize.models:resnet20", "--batch", "2", "--int8"]
    assert main([*command, *FAST]) == 0
    header, *rows = capsys.readouterr().out.splitlines()[-6:]
    assert header.startswith("adderize.models:resnet20, batch 2")
    assert float(header.split("cosine ")[1].split()[0]) > 0.9
    names = ("cnn, torch", "cnn, onnxruntime", "cnn int8, onnxruntime", "adder ", "adder int8")
    for row, name in zip(rows, names, strict=True):
        assert row.strip().startswith(name) and " ms" in row
        assert float(row.split(" ms")[1].partition("x")[0]) > 0
        assert row.endswith("% of the limit") == name.startswith("adder")


def test_peak_memory_grows_with_the_batch() -> None:
    """The activations of one 3x64x64 image take more than 2 MB in SqueezeNet."""
    one, many = (
        twins._peak_megabytes("step", "adder", "squeezenet1_1", (3, 64, 64), batch, "cpu")
        for batch in (2, 66)
    )
    assert one > 0 and many > one + 64 * 2


def test_peak_memory_is_without_what_the_process_imports() -> None:
    """LeNet-5-BN and one image take less than 1 MB, torch's optimizers some 50 to import."""
    assert twins._peak_megabytes("step", "cnn", "lenet5_bn", (1, 32, 32), 1, "cpu") < 15


def test_a_network_that_takes_no_memory_has_no_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(twins, "_peak_megabytes", lambda *arguments: 0.0)
    command = ["bench", "inference", "--arch", "lenet5_bn", "--input", "1,32,32", "--batch", "1"]
    assert main([*command, *FAST]) == 0
    assert "x       -" in capsys.readouterr().out.splitlines()[-1]


def test_both_twins_train_and_only_one_has_adders() -> None:
    adders = {}
    for name in networks.TWINS:
        network = networks.twin(name, "squeezenet1_1", "cpu")
        adders[name] = sum(isinstance(module, AdderConv2d) for module in network.modules())
        before = [parameter.clone() for parameter in network.parameters()]
        networks.training_step(name, network, torch.randn(2, 3, 64, 64))()
        after = list(network.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert adders["cnn"] == 0 and adders["adder"] > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "--only", "transformer"], "transformer"),
        (["step", "--arch", "resnet19"], "resnet19"),
        (["step", "--device", "abacus"], "abacus"),
        (["step", "--input", "1,8,8"], "resnet18 fails on images of 1x8x8"),
        (["step", "--device", "meta"], "meta"),
        (["layers", "--json", "/nowhere/at/all.json", "--only", "120-84"], "nowhere"),
        (["layers", "--json", "/proc/figures.json", "--only", "120-84"], "cannot write to /proc"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, *FAST]) == 1
    assert message in capsys.readouterr().err


def test_the_device_that_is_measured_is_the_one_that_timers_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda:1", "cuda", "cpu"):
        assert bench._device(name) == torch.device(name)
    assert current == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *itertools.product(["--batch", "--threads", "--rounds"], ["0", "-1", "1.5"]),
        *itertools.product(["--seconds"], ["0", "-1", "nan", "inf", "1,2", "long"]),
    ],
)
def test_wrong_counts(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", "step", option, value])
    assert error.value.code == 2
    assert f"{option}: " in capsys.readouterr().err


def test_precisions_leave_the_switches_as_they_were() -> None:
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    seen = [
        gpu.in_precision(name, lambda: [switch.allow_tf32 for switch in switches])()
        for name in ("fp32", "tf32")
    ]
    assert seen == [[False, False], [True, True]]
    with pytest.raises(ZeroDivisionError):
        gpu.in_precision("tf32", lambda: 1 // 0)()
    assert [switch.allow_tf32 for switch in switches] == before


def test_pairs_of_a_network_by_hand() -> None:
    network = nn.Sequential(AdderConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    assert twins.adder_pairs(network, torch.randn(2, 3, 7, 7)) == 2 * 4 * 5 * 5 * 27
    assert network.training


@pytest.fixture
def _pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA devices, on the CPU."""
    for module in (layers, twins):
        monkeypatch.setattr(module, "limits", lambda device: Limits(1e12, 1e12))
    monkeypatch.setattr(gpu, "peak_megabytes", lambda call, device: 1.0)
    monkeypatch.setattr(gpu, "in_precision", lambda name, call, device="cuda": call)
    monkeypatch.setattr(gpu, "is_cuda", lambda device: True)
    monkeypatch.setattr(gpu, "replayed", lambda call: call)


def test_rows_of_a_gpu_have_rates_and_every_precision(_pretended_gpu: None) -> None:
    layer = Layer("small", 2, 4, 6, 4, 3, Geometry.of(padding=1))
    (row,) = measure((layer,), rounds=1, seconds=0.001)
    forward, filters = row["forward"], row["filter gradient"]
    rate = layer.pairs / (forward["adder_ms"] / 1e3)
    assert forward["pairs_per_second"] == pytest.approx(rate)
    assert forward["percent_of_limit"] == pytest.approx(rate / 1e10)
    assert {"convolution_tf32_ms", "convolution_bf16_ms", "adder_bf16_ms"} < set(filters)
    assert "pairs_per_second" not in filters
    text = bench._gpu_line("forward", forward)
    assert "Tpair/s" in text and "% of the limit" in text and text.count("x") >= 4
    assert "Tpair/s" not in bench._gpu_line("filter gradient", filters)


def test_networks_on_a_gpu_in_every_precision(
    _pretended_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "_peak_megabytes", lambda *arguments: 1.0)
    network = ("step", "squeezenet1_1", (3, 64, 64), 2, "cpu")
    row = twins.measure(*network, rounds=1, seconds=0.001)
    for precision in ("tf32", "bf16"):
        for name in networks.TWINS:
            assert row[f"{name}_{precision}_ms"] > 0
    assert row["pairs_per_second"] > 0
    assert "TF32: cnn" in bench._gpu_networks_line(row)


class _Cudnn:
    """torch's own kernels behind the signatures of cuDNN's."""

    def cudnn_convolution(self, x: Any, w: Any, *geometry: Any) -> torch.Tensor:
        padding, stride, dilation, groups, *_ = geometry
        return torch.conv2d(x, w, None, stride, padding, dilation, groups)

    def cudnn_convolution_transpose(self, grad: Any, w: Any, *geometry: Any) -> torch.Tensor:
        padding, beyond, stride, dilation, groups, *_ = geometry
        return torch.conv_transpose2d(grad, w, None, stride, padding, beyond, groups, dilation)


@pytest.mark.parametrize("size", [9, 10, 14])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_cudnns_passes_have_the_shapes_of_torchs(
    stride: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer("grouped", 2, 8, size, 16, 3, Geometry.of(stride, 1, 2, 4))
    x, w = torch.randn(layer.input_shape), torch.randn(layer.weight_shape)
    expected = {name: call() for name, call in layers._convolution(layer, x, w).items()}
    monkeypatch.setattr(layers.torch, "ops", SimpleNamespace(aten=_Cudnn()))
    passes = layers._cudnn(layer, x, w)
    assert list(passes) == ["forward", "input gradient"]
    for name, call in passes.items():
        assert call().shape == expected[name].shape
