"""Single layers in integers against the formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, load_model, recalibrate, save_model
from adderize.layers import AdderConv2dSame
from adderize.quantize import quantize
from adderize.quantize.byte_layers import Epilogue, QuantAdderConv2d, quantized_layer
from adderize.quantize.qparams import QParams
from tests.quantize.networks import Outer, Two, X, check, conv, prepared


def plain(channels: int) -> Epilogue:
    ones = torch.ones(channels, dtype=torch.float64)
    return Epilogue(ones, torch.zeros_like(ones))


def on_lines(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Multiples of 1/16."""
    return torch.randint(low, high + 1, shape) / 16


GEOMETRIES = [
    {},
    {"kernel_size": 1, "padding": 0},
    {"stride": 2, "groups": 2},
    {"kernel_size": (3, 2), "padding": (2, 1), "dilation": (2, 1), "stride": (1, 2)},
    {"groups": 8, "bias": True},
    {"kernel_size": (2, 4), "padding": "same", "bias": True},
    {"padding": "valid"},
    *({"padding": 2, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("zero_point", [0, 37, 255])
def test_exact_where_the_grid_holds_all_values(options, zero_point):
    """Then nothing is rounded, whatever lies outside the range: the float layer's very bits."""
    options = {"kernel_size": 3, "padding": 1, "bias": False, **options}
    layer = AdderConv2d(8, 16, **options)
    layer.weight.data = on_lines(tuple(layer.weight.shape), -900, 900)
    if layer.bias is not None:
        layer.bias.data = on_lines((16,), -99, 99)
    x = on_lines((2, 8, 9, 7), -zero_point, 255 - zero_point)
    quantized = quantized_layer(layer, QParams(1 / 16, zero_point, 8), plain(16))
    assert torch.equal(quantized(x), layer(x))
    assert torch.equal(quantized(x[0]), layer(x)[0])


def test_a_range_without_zero_needs_no_zero_among_its_bytes():
    layer = AdderConv2d(4, 4, 3, bias=False)
    layer.weight.data = on_lines((4, 4, 3, 3), -900, 900)
    for zero_point in (-400, 700):
        x = on_lines((1, 4, 5, 5), -zero_point, 255 - zero_point)
        assert torch.equal(
            quantized_layer(layer, QParams(1 / 16, zero_point, 8), plain(4))(x), layer(x)
        )


@pytest.mark.parametrize("size", [(7, 8), (9, 9), (12, 5)])
def test_padding_of_tensorflow(size):
    layer = AdderConv2dSame(4, 4, 3, stride=2, bias=False)
    layer.weight.data = on_lines((4, 4, 3, 3), -900, 900)
    x = on_lines((1, 4, *size), -9, 246)
    assert torch.equal(quantized_layer(layer, QParams(1 / 16, 9, 8), plain(4))(x), layer(x))


def test_linear_layers_of_any_rank():
    layer = AdderLinear(12, 5)
    layer.weight.data = on_lines((5, 12), -500, 500)
    x = on_lines((2, 3, 12), -8, 247)
    quantized = quantized_layer(layer, QParams(1 / 16, 8, 8), plain(5))
    assert torch.equal(quantized(x), layer(x))
    assert torch.equal(quantized(x[0, 0]), layer(x)[0, 0])


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("output", [QParams(0.03, 20, 8), QParams(0.2, 3, 4), None], ids=str)
def test_the_whole_epilogue(bits, output):
    """clamp(gain * (bias - sum|x - w|) + offset + residual), rounded to the output's bytes."""
    layer = AdderConv2d(6, 8, 3, padding=1)
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.weight, std=3)
    grid, residual_grid = QParams.covering(-0.5, 2, bits, with_zero=True), QParams(0.02, 60, 8)
    gain = torch.rand(8, dtype=torch.float64) * 0.2 - 0.05
    x, residual = torch.rand(2, 6, 5, 5) * 3 - 1, torch.randn(2, 8, 5, 5)
    offset = -gain * layer(x.clamp(grid.low, grid.high)).mean((0, 2, 3)).double()
    epilogue = Epilogue(gain, offset.detach(), -0.4, 1.5, residual_grid, output)
    quantized = quantized_layer(layer, grid, epilogue)
    r = residual_grid.to_bytes(residual)
    given = quantized(x, r)

    seen = F.pad(grid.to_float(grid.to_bytes(x)).double(), (1, 1, 1, 1))
    clamped = layer.weight.detach().double().clamp(grid.low, grid.high)
    rounded = (clamped / grid.scale).round().clamp(-grid.zero_point, grid.levels - grid.zero_point)
    constant = (layer.weight.double() - clamped).abs().flatten(1).sum(1)
    patches = F.unfold(seen, 3).transpose(1, 2)
    distances = torch.cdist(patches, (rounded * grid.scale).flatten(1)[None], p=1)
    y = layer.bias.double() - constant - distances
    v = (gain * y + offset).transpose(1, 2).view(2, 8, 5, 5)
    v = (v + residual_grid.to_float(r).double()).clamp(-0.4, 1.5).detach()
    if output is None:
        assert given.dtype == torch.float32 and torch.allclose(given.double(), v, atol=1e-4)
    else:
        steps = output.to_float(given).double() - v.clamp(output.low, output.high)
        assert given.dtype == torch.uint8 and float(steps.abs().max()) < 0.501 * output.scale + 1e-4
        bounds = output.nearest(-0.4), output.nearest(1.5)
        assert bounds[0] <= int(given.min()) and int(given.max()) <= bounds[1]


def test_what_a_layer_says_and_takes():
    layer = quantized_layer(AdderConv2d(4, 6, 3, groups=2), QParams(0.1, 3, 8), plain(6))
    assert isinstance(layer, QuantAdderConv2d) and "zero_point=3" in repr(layer)
    assert layer.weight.dtype == torch.uint8 and layer.weight.shape == (6, 2, 3, 3)
    for wrong in (torch.randn(1, 5, 6, 6), torch.arange(144).view(1, 4, 6, 6)):
        with pytest.raises(ValueError):
            layer(wrong)


ASSIGNED: dict[str, dict[str, Any]] = {
    "dilated by pairs": {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2)},
    "dilated by integers": {"dilation": 2, "padding": 2},
    "stride as an integer": {"stride": 2},
    "no padding": {"padding": 0},
    "same": {"padding": "same", "dilation": 3},
    "valid": {"padding": "valid"},
    "more rows than columns": {"padding": (2, 0), "stride": (2, 1)},
    "lists": {"padding": [2, 2], "dilation": [2, 2]},
    "reflect": {"padding_mode": "reflect", "padding": 3},
    "circular, same": {"padding_mode": "circular", "padding": "same", "dilation": (2, 1)},
    "replicate": {"padding_mode": "replicate", "padding": (0, 2)},
}


@pytest.mark.parametrize("options", ASSIGNED.values(), ids=ASSIGNED)
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("traced", [True, False])
def test_geometry_that_is_assigned_after_construction(options, groups, traced, tmp_path):
    model = Two()
    model.a = conv(8, 8, stride=1, groups=groups)
    prepared(model)
    for name, value in options.items():
        setattr(model.a, name, value)
    recalibrate(model, [X]).eval()
    quantized = check(model if traced else Outer(model).eval(), traced=traced)
    save_model(quantized, tmp_path)
    fresh = Two()
    fresh.a = conv(8, 8, groups=groups)
    for name, value in options.items():
        setattr(fresh.a, name, value)
    loaded = load_model(fresh if traced else Outer(fresh), tmp_path)
    assert torch.equal(loaded(X), quantized(X))


def test_padding_of_tensorflow_with_padding_of_its_own():
    layer = AdderConv2dSame(3, 4, 3, stride=2)
    layer.padding, layer.dilation = 1, (2, 2)
    check(layer.eval(), traced=False)


def test_linear_layers_name_the_size_they_expect():
    quantized = quantize(AdderLinear(12, 4), [torch.randn(5, 12)])
    with pytest.raises(AdderizeError, match=r"\(5, 24\); expected \(..., 12\)"):
        quantized(torch.randn(5, 24))
