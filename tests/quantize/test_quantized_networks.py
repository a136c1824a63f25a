"""Whole networks in integers: what is fused, what stays bytes, and what comes out."""

from __future__ import annotations

import copy
import csv
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adderize import AdderConv2d, AdderizeError, adderize, load_authors_checkpoint
from adderize.quantize import QuantAdderConv2d, prepare_qat, quantize, quantize_report
from adderize.quantize.qparams import QParams
from adderize.quantize.record import quantization_of
from tests.quantize.networks import (
    Branches,
    Outer,
    Residual,
    Two,
    Untraceable,
    conv,
    prepared,
    relative_error,
    trained,
)

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def functions(model: fx.GraphModule) -> list[str]:
    return [node.target.__name__ for node in model.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("network", [Residual, Branches, Untraceable])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_outputs_stay_close(network, method):
    model = trained(network())
    state = copy.deepcopy(model.state_dict())
    expected = model(X)
    errors = [
        relative_error(quantize(model, X.split(16), method=method, bits=bits)(X), expected)
        for bits in (8, 6, 4)
    ]
    assert errors[0] < 0.08 and errors[0] < errors[1] < errors[2] < 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("trains", [False, True])
def test_ranges_of_kept_inputs_are_those_of_all_batches(trains):
    model, pooled = trained(Residual()), []
    hook = model.head.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    model(X)
    hook.remove()
    quantized = quantize(prepare_qat(model, [X]) if trains else model, X.split(16))
    found = quantization_of(quantized).kept_inputs
    assert found.keys() == {"stem_0", "head"}
    assert found["stem_0"] == tuple(map(float, X.aminmax()))
    tolerance = 0.05 if trains else 1e-5
    assert found["head"] == pytest.approx(tuple(map(float, pooled[0].aminmax())), rel=tolerance)


def test_a_residual_network_keeps_bytes_from_stem_to_pooling():
    model = quantize(trained(Residual()), [X])
    assert functions(model) == ["quantize_bytes", "max_pool2d_bytes", "adaptive_avg_pool2d"]
    found = quantize_report(model)
    assert [line.count("|") for line in found.to_markdown().splitlines()[:7]] == [8] * 7
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["layer"] for row in rows] == [row.layer for row in found.layers]
    report = {row.layer: row for row in found.layers}
    assert report["block.conv1"].fused == ("BatchNorm2d", "ReLU")
    assert report["block.conv2"].fused == ("BatchNorm2d", "add", "ReLU")
    assert {"wide.conv2", "wide.down.0"} <= report.keys()
    assert [row.output for row in report.values()] == ["bytes"] * 4 + ["float32"]
    assert all(row.low == 0 and row.zero_point == 0 for row in report.values())
    assert not any(isinstance(m, AdderConv2d | nn.BatchNorm2d) for m in model.modules())


def test_concatenation_chunks_and_shuffling_move_bytes():
    model = quantize(trained(Branches()), [X])
    names = functions(model)
    assert names.count("quantize_bytes") == 1 and "dequantize_bytes" not in names
    report = {row.layer: row for row in quantize_report(model).layers}
    assert report["part.0"].fused == ("BatchNorm2d", "Hardtanh")
    assert report["right.0"].fused == ("BatchNorm2d", "relu")
    assert report["part.0"].low < 0 < report["part.0"].zero_point


def test_the_residual_network_step_by_step_in_float64():
    """The integer network is the float network with its tensors on their grids."""
    model = trained(Residual())
    quantized = quantize(model, [X])
    grids = {
        row.layer: QParams((row.high - row.low) / 255, 0, 8)
        for row in quantize_report(quantized).layers
    }
    double = copy.deepcopy(model).double()

    def on(grid: QParams, x: Tensor) -> Tensor:
        return (x / grid.scale).round().clamp(0, 255) * grid.scale

    def adder(name: str, norm: nn.Module, x: Tensor) -> Tensor:
        grid, layer = grids[name], double.get_submodule(name)
        weight = layer.weight
        clamped = weight.clamp(0, grid.high)
        constant = (weight - clamped).abs().flatten(1).sum(1).view(-1, 1, 1)
        layer = copy.deepcopy(layer)
        layer.weight = nn.Parameter((clamped / grid.scale).round() * grid.scale)
        return norm(layer(x) - constant)

    x = on(grids["block.conv1"], double.pool(double.stem(X.double())))
    y = on(grids["block.conv2"], adder("block.conv1", double.block.bn1, x).relu())
    x = on(grids["wide.conv1"], (adder("block.conv2", double.block.bn2, y) + x).relu())
    y = on(grids["wide.conv2"], adder("wide.conv1", double.wide.bn1, x).relu())
    last = quantized.get_submodule("wide.conv2")
    if last.residual_qparams is None:
        pytest.fail("the last layer adds the other branch")
    down = adder("wide.down.0", double.wide.down[1], x)
    grid = last.residual_qparams
    down = ((down / grid.scale).round() + grid.zero_point).clamp(0, 255) - grid.zero_point
    y = (adder("wide.conv2", double.wide.bn2, y) + down * grid.scale).relu()
    expected = double.head(F.adaptive_avg_pool2d(y, 1).flatten(1))
    # float32 rounds a value in ten thousand to the neighbouring step.
    assert relative_error(quantized(X).double(), expected) < 2e-3


class Odd(nn.Module):
    """In-place additions read later, a norm behind an activation, a group norm, a scaled sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.group = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norms[0](self.a(x))
        x += y
        z = self.norms[2](F.silu(self.norms[1](self.b(x))))
        y.relu_()
        return self.group(self.c(torch.add(z, y, alpha=0.5) + x.mean((2, 3), keepdim=True)))


class Twice(nn.Module):
    """One layer called twice, with inserted norms, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.unused = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.stem(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("network", [Odd, Twice])
def test_what_does_not_fit_stays_float(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trained(network())
    quantized = quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule)
    assert relative_error(quantized(X), model(X)) < 0.12


def test_a_layer_called_twice_has_two_forms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trained(Twice())
    model.unused = AdderConv2d(8, 8, 3)
    quantized = quantize(model, [X])
    assert sum(isinstance(m, QuantAdderConv2d) for m in quantized.modules()) == 2
    assert "unused stays float32: it is not called" in str(quantize_report(quantized))


def test_linear_adders_with_norms():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6)
    )
    model = trained(model, linear=True, stem=True, head=True)
    quantized = quantize(model, [X])
    rows = quantize_report(quantized).layers
    assert [row.fused for row in rows] == [("BatchNorm1d", "ReLU"), ("BatchNorm1d",)]
    assert relative_error(quantized(X), model(X)) < 0.05


def test_a_single_layer():
    layer = AdderConv2d(3, 4, 3, padding=1)
    quantized = quantize(layer, [X])
    assert isinstance(quantized, QuantAdderConv2d) and quantize_report(quantized).bits == 8
    assert relative_error(quantized(X), layer(X)) < 0.05


def test_untraceable_networks_say_so():
    report = quantize_report(quantize(trained(Untraceable()), [X]))
    assert "cannot be traced" in str(report) and len(report.layers) == 5
    assert all(row.output == "float32" and row.error < 0.1 for row in report.layers)


class Amplified(Residual):
    """Folding a norm into the stem's convolution changes last digits, and thereby the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * 1e6).sin()


class Forgetful(Residual):
    """Where it is traced it leaves the first block out."""

    def forward(self, x: Tensor) -> Tensor:
        traced = isinstance(x, fx.Proxy)
        x = self.pool(self.stem(x))
        x = self.wide(x if traced else self.block(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_amplified_rounding_is_no_reason_not_to_trace():
    quantized = quantize(trained(Amplified()), [X])
    assert isinstance(quantized, fx.GraphModule) and not quantize_report(quantized).remarks


def test_a_wrong_trace_is_not_used():
    report = quantize_report(quantize(trained(Forgetful()), [X]))
    assert "the traced network computes something else" in str(report)


def test_inputs_beyond_the_calibrated_range_saturate():
    layer = AdderConv2d(1, 1, 1, bias=False)
    quantized = quantize(layer, [torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)])
    given = quantized(torch.tensor([1.0, 9.0, -9.0, 0.0]).view(4, 1, 1, 1)).flatten()
    assert given[0] == given[1] and given[2] == given[3]


def test_in_place_saves_the_copy():
    model = trained(Residual())
    quantized = quantize(model, [X], inplace=True)
    assert quantized.head is model.head
    assert quantize(trained(Residual()), [X]).head is not model.head


def test_copies_keep_the_report():
    quantized = quantize(trained(Residual()), [X])
    twin = copy.deepcopy(quantized)
    assert str(quantize_report(twin)) == str(quantize_report(quantized))
    assert torch.equal(twin(X), quantized(X))


def test_export_and_compile():
    quantized = quantize(trained(Residual()), [X])
    expected = quantized(X[:2])
    program = torch.export.export(quantized, (X[:2],))
    assert torch.equal(program.module()(X[:2]), expected)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(X[:2]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "entropy"}, "entropy"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": 8.0}, "bits"),
        ({"inplace": 1}, "inplace"),
        ({"calibration": []}, "no batches"),
        ({"calibration": [X * float("nan")]}, "NaN"),
        ({"calibration": [X, X * float("inf")]}, "NaN or infinity"),
        ({"calibration": [X[:, :2]]}, "first calibration batch"),
        ({"calibration": [X, X[:, :2]]}, r"a calibration batch of shape \(64, 2, 12, 12\)"),
    ],
)
def test_wrong_arguments(options, message):
    options = {"calibration": [X], **options}
    with pytest.raises(AdderizeError, match=message):
        quantize(trained(Residual()), options.pop("calibration"), **options)


def test_wrong_models():
    model = trained(Residual())
    with pytest.raises(AdderizeError, match="quantized already"):
        quantize(quantize(model, [X]), [X])
    with pytest.raises(AdderizeError, match="no adder layers"):
        quantize(Residual(), [X])
    with pytest.raises(AdderizeError, match="float32"):
        quantize(copy.deepcopy(model).double(), [X.double()])
    with pytest.raises(AdderizeError, match="compiled"):
        quantize(torch.compile(model), [X])
    with pytest.raises(AdderizeError, match="meta"):
        quantize(copy.deepcopy(model).to("meta"), [X])
    with pytest.raises(AdderizeError, match="not quantized"):
        quantize_report(model)
    model.block.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(AdderizeError, match=r"block\.conv1\.weight holds NaN"):
        quantize(model, [X])


def test_wrong_inputs_at_run_time():
    quantized = quantize(AdderConv2d(3, 4, 3), [X])
    with pytest.raises(AdderizeError, match="dtype"):
        quantized(X.long())
    with pytest.raises(AdderizeError, match="channels"):
        quantized(X[:, :2])


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("traced", [True, False])
def test_defaults_of_torch_make_no_difference(method, traced):
    model = prepared(Two())
    model = model if traced else Outer(model).eval()
    large = torch.randn(8, 3, 160, 160)
    expected = quantize(model, [large], method=method)(X)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            quantized = quantize(model, [large], method=method)
            given = quantized(X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(given, expected)


@pytest.mark.shared
def test_the_authors_resnet20_loses_nothing(data_folder, models_folder):
    from adderize.data.image_sources import load_labelled
    from adderize.data.normalisation import CIFAR10
    from adderize.models import resnet20

    model = adderize(resnet20())
    load_authors_checkpoint(model, models_folder / "resnet20-addernet-cifar10.pth").eval()
    size = (3, 32, 32)
    calibration = load_labelled(data_folder / "cifar10", size, CIFAR10, limit=250, split="train")[0]
    images = load_labelled(data_folder / "cifar10", size, CIFAR10, limit=200)[0]
    quantized = quantize(model, calibration.split(125))
    agree = (quantized(images).argmax(1) == model(images).argmax(1)).double().mean()
    assert float(agree) > 0.95
