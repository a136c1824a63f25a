"""Geometry that is assigned after construction: what forward computes, in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, BinaryConv2d, adderize
from adderize.layers import AdderConv2dSame, effective_geometry, pads_with_zeros

KINDS = {"adder": AdderConv2d, "binary": BinaryConv2d}
CHANGES: dict[str, dict[str, Any]] = {
    "integers": {"stride": 2, "padding": 3, "dilation": 2},
    "pairs": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "lists": {"stride": [2, 1], "padding": [3, 1]},
    "dilated backbone": {"stride": (1, 1), "dilation": (4, 4), "padding": (4, 4)},
    "same": {"stride": 1, "padding": "same", "dilation": 2},
    "same, odd": {"stride": 1, "padding": "same", "dilation": 3},
    "valid": {"padding": "valid"},
    "groups": {"groups": 2},
    "reflect": {"padding_mode": "reflect"},
    "circular": {"padding_mode": "circular", "padding": 2},
    "replicate": {"padding_mode": "replicate", "padding": (0, 3)},
    "circular, same": {"padding_mode": "circular", "padding": "same", "stride": (1, 1)},
}
KERNEL = (3, 2)


def _changed(kind: type[nn.Module], change: dict[str, Any]) -> nn.Module:
    """Made with one geometry, given another."""
    layer = kind(4, 6, KERNEL, stride=2, padding=1)
    for name, value in change.items():
        setattr(layer, name, value)
    layer.weight = nn.Parameter(torch.randn(6, 4 // layer.groups, *KERNEL))
    return layer


def _made(kind: type[nn.Module], change: dict[str, Any], like: nn.Module) -> nn.Module:
    geometry = {"stride": 2, "padding": 1} | change
    geometry = {k: tuple(v) if isinstance(v, list) else v for k, v in geometry.items()}
    layer = kind(4, 6, KERNEL, **geometry)
    layer.load_state_dict(like.state_dict())
    return layer


def _images() -> Tensor:
    return torch.randn(2, 4, 13, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_forward_is_that_of_a_layer_made_so(kind: str, change: str) -> None:
    layer = _changed(KINDS[kind], CHANGES[change])
    made = _made(KINDS[kind], CHANGES[change], layer)
    expected = made(_images())
    assert torch.equal(layer(_images()), expected)
    convolution = nn.Conv2d(4, 6, KERNEL, **({"stride": 2, "padding": 1} | CHANGES[change]))
    assert expected.shape == convolution(_images()).shape
    assert torch.equal(layer(_images()[0]), made(_images()[0]))


@pytest.mark.parametrize("change", CHANGES)
def test_effective_geometry_is_what_forward_computes(change: str) -> None:
    layer = _changed(AdderConv2d, CHANGES[change])
    geometry, pads = effective_geometry(layer)
    images = _images()
    if pads:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        images = F.pad(images, pads, mode=mode)
    output = torch.ops.adderize.adder_conv2d(images, layer.weight, *geometry, "full")
    expected = layer(_images()) - layer.bias[:, None, None]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("change", CHANGES)
def test_effective_geometry_of_a_convolution(change: str) -> None:
    """Torch's own forward reads the attributes, too, unless it pads with something else."""
    layer = nn.Conv2d(4, 6, KERNEL, stride=2, padding=1)
    for name, value in CHANGES[change].items():
        setattr(layer, name, value)
    if layer.padding_mode != "zeros":
        return
    layer.weight = nn.Parameter(torch.randn(6, 4 // layer.groups, *KERNEL))
    geometry, pads = effective_geometry(layer)
    *walk, groups = geometry
    output = torch.ops.aten.convolution(
        F.pad(_images(), pads), layer.weight, layer.bias, *walk, False, [0, 0], groups
    )
    torch.testing.assert_close(output, layer(_images()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_traced_forms(kind: str, change: str) -> None:
    layer = _changed(KINDS[kind], CHANGES[change]).eval()
    expected = layer(_images())
    assert torch.equal(torch.fx.symbolic_trace(layer)(_images()), expected)
    program = torch.export.export(layer, (_images(),)).module()
    assert torch.equal(program(_images()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_of_numpy(kind: str) -> None:
    """torch's convolutions take them: sizes that a search or a file gives are often such."""
    plain: dict[str, Any] = {"stride": 2, "padding": (1, 0), "dilation": 1, "groups": 2}
    integers = {"stride": np.int64(2), "padding": (np.int32(1), np.int64(0)),
                "dilation": [np.uint8(1)], "groups": np.int64(2)}  # fmt: skip
    layer = KINDS[kind](4, 6, tuple(map(np.int64, KERNEL)), **integers).eval()
    expected = layer(_images())
    assert {name: getattr(layer, name) for name in plain} == {
        "stride": (2, 2), "padding": (1, 0), "dilation": (1, 1), "groups": 2
    }  # fmt: skip
    assert torch.equal(torch.export.export(layer, (_images(),)).module()(_images()), expected)
    other = KINDS[kind](4, 6, KERNEL, **plain).eval()
    other.load_state_dict(layer.state_dict())
    for name, value in integers.items():
        setattr(other, name, value)
    assert torch.equal(other(_images()), expected)
    assert all(type(n) is int for pair in effective_geometry(other)[0][:3] for n in pair)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["pairs", "same, odd", "circular"])
def test_exported_to_onnx(kind: str, change: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from adderize.export import export_onnx

    layer = _changed(KINDS[kind], CHANGES[change]).eval()
    export_onnx(layer, _images(), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: _images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(_images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"stride": 2}, {"stride": [2, 1]}, {"dilation": 2}])
def test_same_padding_follows_what_is_assigned(change: dict[str, Any]) -> None:
    layer = AdderConv2dSame(4, 6, KERNEL)
    for name, value in change.items():
        setattr(layer, name, value)
    made = AdderConv2dSame(4, 6, KERNEL, **{k: tuple(v) if isinstance(v, list) else v
                                            for k, v in change.items()})  # fmt: skip
    made.load_state_dict(layer.state_dict())
    expected = made(_images())
    stride = effective_geometry(layer)[0].stride
    assert expected.shape[2:] == (-(-13 // stride[0]), -(-12 // stride[1]))
    assert torch.equal(layer(_images()), expected)
    # As in the original: neither means anything.
    layer.padding, layer.padding_mode = (5, 5), "circular"
    assert torch.equal(layer(_images()), expected)
    assert effective_geometry(layer) == (effective_geometry(made)[0], [])


def test_where_zeros_come_around() -> None:
    layer = AdderConv2d(4, 6, KERNEL)
    for padding, zeros in ((0, False), (2, True), ((0, 1), True), ("same", True), ("valid", False)):
        layer.padding = padding
        assert pads_with_zeros(layer) == zeros
    layer.padding, layer.padding_mode = 1, "reflect"
    assert not pads_with_zeros(layer) and not pads_with_zeros(nn.Linear(2, 2))
    assert pads_with_zeros(AdderConv2dSame(4, 6, KERNEL))
    assert not pads_with_zeros(AdderConv2d(4, 6, 1, padding="same"))
    assert pads_with_zeros(nn.Conv3d(1, 1, 3, padding=1))
    assert not pads_with_zeros(nn.ConvTranspose3d(1, 1, 3, padding=1))  # which cuts its output


def test_a_dilated_backbone_stays_one() -> None:
    """Strides and dilations of existing convolutions are assigned, then converted, or after."""
    outputs = []
    for first in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        )
        if first:
            adderize(net)
        net[1].stride, net[1].dilation, net[1].padding = 1, (4, 4), 4
        if not first:
            adderize(net)
        assert isinstance(net[1], AdderConv2d)
        outputs.append(net.eval()(torch.ones(1, 3, 20, 20)))
    assert outputs[0].shape == (1, 2, 18, 18)
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [{"stride": "2"}, {"stride": (1, 2, 3)}, {"padding": "some"}, {"dilation": 1.5},
     {"padding": "same", "stride": 2}, {"groups": 2.0}],
)  # fmt: skip
def test_nonsense_is_refused(kind: str, change: dict[str, Any]) -> None:
    layer = KINDS[kind](4, 6, KERNEL, padding=1)
    for name, value in change.items():
        setattr(layer, name, value)
    with pytest.raises(AdderizeError, match="|".join(change)):
        layer(_images())
    with pytest.raises(AdderizeError, match="|".join(change)):
        effective_geometry(layer)
