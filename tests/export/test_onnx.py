"""Exported adders, as ONNX Runtime computes them."""

from __future__ import annotations

import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, BinaryConv2d, recalibrate
from adderize.export import export_onnx, translation_table
from adderize.integer import multiplication_free
from adderize.quantize import prepare_qat
from tests.test_whole_files import killed_at

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(model: nn.Module, input: Tensor, path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(model, input, path, **options)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def relative_error(session: Any, model: nn.Module, input: Tensor) -> float:
    (result,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    with torch.no_grad():
        expected = model.eval()(input).numpy()
    assert result.shape == expected.shape and result.dtype == np.float32
    assert expected.std() > 0
    return float(np.abs(result - expected).max() / np.abs(expected).max())


LAYERS = [
    (AdderConv2d(4, 6, 3, padding=1), (2, 4, 9, 11)),
    (AdderConv2d(4, 6, (3, 2), (2, 3), (1, 2), (1, 2), groups=2), (2, 4, 9, 11)),
    (AdderConv2d(5, 10, 3, 2, groups=5, bias=False), (1, 5, 8, 8)),
    (AdderConv2d(3, 4, 1, 2), (1, 3, 7, 6)),
    (nn.Sequential(nn.Flatten(), AdderLinear(12, 7)), (5, 3, 4)),
    (nn.Sequential(nn.BatchNorm2d(4), BinaryConv2d(4, 6, 3, padding=1)), (2, 4, 9, 11)),
    (BinaryConv2d(4, 6, (3, 2), (2, 3), (1, 2), (1, 2), groups=2, bias=False), (2, 4, 9, 11)),
]


@pytest.mark.parametrize("layer, size", LAYERS)
def test_layers(layer: nn.Module, size: tuple[int, ...], tmp_path: Path) -> None:
    input = torch.randn(size)
    session = export(layer, input, tmp_path / "m.onnx")
    assert relative_error(session, layer, input) < 1e-6
    # The sign of 0 is 1.
    assert relative_error(session, layer, input.relu()) < 1e-6


def resnet10() -> nn.Module:
    """Converted, its batch norms adjusted to the distances, so that the logits mean something."""
    from torchvision.models.resnet import BasicBlock, ResNet

    from adderize import adderize

    # ResNet-18 has each of these blocks twice.
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    return recalibrate(adderize(network, scale=1), [torch.randn(4, 3, 64, 64)])


def test_a_resnet_with_dynamic_sizes(tmp_path: Path) -> None:
    import onnx
    from onnx.inliner import inline_local_functions

    model = resnet10()
    sizes = ({0: "batch", 2: "height", 3: "width"},)
    if torch.__version__ < (2, 7):  # it knows no names of sizes
        sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    path = tmp_path / "resnet10.onnx"
    session = export(model, torch.randn(2, 3, 64, 64), path, dynamic_shapes=sizes)
    # Differences in the last digits grow through the layers of an untrained network.
    for size in ((2, 3, 64, 64), (1, 3, 96, 80)):
        assert relative_error(session, model, torch.randn(size)) < 2e-4
    nodes = inline_local_functions(onnx.load(path)).graph.node
    assert sum(node.op_type == "Loop" for node in nodes) == 11
    assert {node.domain for node in nodes} == {""}


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d((3, 2), (1, 2), (1, 0), divisor_override=1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=7),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.Sequential(nn.Flatten(0, 1), nn.AvgPool2d(3, divisor_override=2)),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.AvgPool3d(2, 1, divisor_override=3)),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.AvgPool3d((1, 3, 2), padding=(0, 1, 0))),
    ],
)
def test_average_pools(pool: nn.Module, tmp_path: Path) -> None:
    """torch's own translation leaves out the divisor."""
    input, network = torch.randn(2, 3, 9, 10), nn.Sequential(AdderConv2d(3, 4, 3, padding=1), pool)
    assert relative_error(export(network, input, tmp_path / "m.onnx"), network, input) < 1e-6


def test_average_pools_without_a_form_are_refused(tmp_path: Path) -> None:
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5)
    network = nn.Sequential(AdderConv2d(3, 4, 3), pool)
    with pytest.raises(AdderizeError, match=r"^an average pooling has divisor_override and ceil"):
        export(network, torch.randn(2, 3, 9, 10), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


class Pools(nn.Module):
    """Every kind of average."""

    def __init__(self) -> None:
        super().__init__()
        self.adder = nn.Sequential(AdderConv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.rows, self.both = nn.AvgPool2d((2, 1), padding=(1, 0)), nn.AvgPool2d(3, 2)
        self.last = nn.AdaptiveAvgPool2d((2, None))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.both(self.rows(self.adder(x))))
        return torch.cat([x.mean((2, 3)), x.mean(-1).flatten(1)], 1)


def test_shifts_for_any_number_of_images(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 12, 15)
    network = recalibrate(Pools(), [images]).eval()
    free = multiplication_free(network, norm_terms=12)
    shapes = ({0: torch.export.Dim.AUTO},)
    session = export(free, images[:2], tmp_path / "m.onnx", dynamic_shapes=shapes)
    for batch in (images[:1], images):
        assert relative_error(session, network, batch) < 1e-3


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 does not say that it exports")
def test_shifts_that_torch_exports_itself(tmp_path: Path) -> None:
    pools = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1))
    network, image = multiplication_free(pools.eval()), torch.randn(1, 3, 11, 11)
    path = tmp_path / "m.onnx"
    torch.onnx.export(network, (image,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    assert relative_error(session, network, image) < 1e-5


def test_sizes_that_torch_fixes_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.onnx.export

    def with_fixed_sizes(*args: Any, dynamic_shapes: Any, **kwargs: Any) -> Any:
        return write(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", with_fixed_sizes)
    layer, input, path = AdderConv2d(4, 6, 3), torch.randn(2, 4, 9, 9), tmp_path / "m.onnx"
    with pytest.raises(AdderizeError, match=r"m.onnx was written for inputs of \[2, 4, 9, 9\]"):
        export(layer, input, path, dynamic_shapes=({0: "batch"},))
    assert export(layer, input, path, dynamic_shapes=None)


def test_memory_does_not_grow_with_the_taps(tmp_path: Path) -> None:
    # 2304 taps on 56x56 positions, 64 filters: all differences at once would be 1.8 GB.
    layer, input = AdderConv2d(256, 64, 3, padding=1, bias=False), torch.randn(1, 256, 56, 56)
    session = export(layer, input, tmp_path / "m.onnx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session.run(None, {session.get_inputs()[0].name: input.numpy()})
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert growth < 100e6
    assert relative_error(session, layer, input) < 1e-5


def test_an_interrupted_export_leaves_no_file_beside_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, layers = torch.randn(1, 600), [nn.Linear(600, 3), nn.Linear(600, 3)]
    session = export(layers[0], example, tmp_path / "m.onnx")
    assert relative_error(session, layers[0], example) < 1e-6
    with killed_at(2, monkeypatch):
        export_onnx(layers[1], example, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_missing_onnxscript_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "adderize.export.onnx_translations", raising=False)
    monkeypatch.delattr("adderize.export.onnx_translations", raising=False)
    with pytest.raises(AdderizeError, match=r"adderize\[onnx\]"):
        translation_table()


def test_the_mode_of_every_layer_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(AdderConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    session = export(model, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx")
    assert [module.training for module in model] == [True, False, True]
    assert relative_error(session, model, torch.randn(2, 3, 6, 6)) < 1e-6


def test_what_has_no_onnx_form_is_refused(tmp_path: Path) -> None:
    from adderize.quantize import quantize

    x = torch.randn(4, 3, 8, 8)
    float_network = nn.Sequential(AdderConv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(AdderizeError, match="0 is an 8-bit layer"):
        export_onnx(quantize(float_network, [x]), x, tmp_path / "m.onnx")
    with pytest.raises(AdderizeError, match=r"0 has filters of torch.float64"):
        export_onnx(float_network.double(), x.double(), tmp_path / "m.onnx")
    with pytest.raises(AdderizeError, match="the model is a str"):
        export_onnx("m.onnx", x, float_network)  # type: ignore[arg-type]


def test_rounding_in_training_is_refused(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 8, 8)
    prepared = prepare_qat(nn.Sequential(AdderConv2d(3, 4, 3), nn.ReLU()).eval(), images)
    with pytest.raises(AdderizeError, match=r"prepare_qat\(\): rounding has no ONNX form"):
        export_onnx(prepared, images, tmp_path / "m.onnx")
