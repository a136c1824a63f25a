"""Sums of signed powers of two, and the layers whose weights they are."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adderize import AdderizeError
from adderize.layers import (
    ShiftAddAdaptiveAvgPool2d,
    ShiftAddAvgPool2d,
    ShiftAddConv2d,
    ShiftAddLeakyReLU,
    ShiftAddLinear,
    ShiftAddMean,
    ShiftAddNorm1d,
    ShiftAddNorm2d,
    ShiftAddScale,
)
from adderize.layers.powers_of_two import powers_of_two, rounded_number


def nearest_by_search(value: float, terms: int) -> Fraction:
    """The greedy sum in exact arithmetic, every exponent tried."""
    total = Fraction(0)
    for _ in range(terms):
        rest = Fraction(value) - total
        if rest == 0:
            break
        candidates = [Fraction(2) ** e * (1 if rest > 0 else -1) for e in range(-60, 40)]
        total += min(candidates, key=lambda power: (abs(rest - power), abs(power)))
    return total


@pytest.mark.parametrize("terms", [1, 2, 3, 5])
def test_sums_are_the_greedy_ones(terms: int) -> None:
    values = torch.cat(
        [torch.randn(60) * 10.0 ** torch.randint(-4, 4, (60,)), torch.arange(-8.0, 9)]
    )
    exponents, signs = powers_of_two(values, terms)
    assert exponents.dtype == signs.dtype == torch.int8
    assert exponents.shape == signs.shape == (terms, len(values))
    for i, value in enumerate(values.tolist()):
        pairs = zip(exponents[:, i].tolist(), signs[:, i].tolist(), strict=True)
        found = sum((Fraction(2) ** e * s for e, s in pairs), Fraction(0))
        assert found == nearest_by_search(value, terms)
        assert Fraction(rounded_number(value, terms)) == found


@pytest.mark.parametrize(("terms", "bound"), [(1, 1 / 3), (2, 1 / 11), (3, 0.0233), (4, 0.0059)])
def test_relative_errors_stay_below_the_documented_bounds(terms: int, bound: float) -> None:
    values = torch.linspace(1, 2, 50_001, dtype=torch.float64)[:-1]
    layer = ShiftAddScale(values, terms=terms)
    errors = (layer.weight.double() - values).abs() / values
    assert float(errors.max()) <= bound + 1e-6
    assert layer.worst_error == pytest.approx(float(errors.max()), abs=1e-6)


def test_enough_terms_give_every_float_exactly() -> None:
    values = torch.randn(2000) * torch.logspace(-30, 30, 2000)
    assert torch.equal(ShiftAddScale(values, terms=24).weight, values)


def test_zero_is_no_shift_at_all() -> None:
    exponents, signs = powers_of_two(torch.tensor([0.0, -0.0, 1e-45, 1.0]), 2)
    assert signs.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert not exponents[:, :3].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**127, -(2.0**126)])
def test_scales_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(AdderizeError, match="a scale is"):
        powers_of_two(torch.tensor([1.0, value]), 3)


@pytest.mark.parametrize("terms", [0, -1, 25, 2.0, True, None])
def test_terms_out_of_range_are_refused(terms: object) -> None:
    with pytest.raises(AdderizeError, match="terms is"):
        powers_of_two(torch.ones(2), terms)  # type: ignore[arg-type]


def trained_norm(
    kind: type[nn.Module] = nn.BatchNorm2d, *, mean: float = 0.0, **options: bool
) -> nn.Module:
    norm = kind(8, **options).eval()
    norm.running_mean.normal_().add_(mean)
    norm.running_var.uniform_(0.5, 900)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_its_batch_norm_with_rounded_scales(affine: bool) -> None:
    norm = trained_norm(affine=affine)
    form = ShiftAddNorm2d.from_norm(norm, terms=3)
    x = torch.randn(2, 8, 5, 4) * 30
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (norm.weight.double() if affine else 1)
    sums = [float(nearest_by_search(float(s.float()), 3)) for s in scale]
    centred = x.double() - norm.running_mean.double().view(-1, 1, 1)
    expected = centred * torch.tensor(sums, dtype=torch.float64).view(-1, 1, 1)
    if affine:
        expected = expected + norm.bias.double().view(-1, 1, 1)
    assert torch.allclose(form(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(form(x[0]), form(x)[0])


def test_a_mean_far_from_zero_is_taken_off_exactly() -> None:
    norm = trained_norm(mean=-4400.0)
    x = norm.running_mean.view(-1, 1, 1) + 30 * torch.randn(2, 8, 5, 4)
    error = (ShiftAddNorm2d.from_norm(norm, terms=2)(x) - norm(x)).abs().max()
    assert float(error) < 0.1 * float(norm(x).abs().max())


def test_a_norm_of_vectors() -> None:
    norm, x = trained_norm(nn.BatchNorm1d), torch.randn(6, 8) * 30
    assert torch.allclose(ShiftAddNorm1d.from_norm(norm, terms=24)(x), norm(x), atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.ReLU()],
)
def test_norms_without_fixed_statistics_are_refused(norm: nn.Module) -> None:
    with pytest.raises(AdderizeError, match=type(norm).__name__):
        ShiftAddNorm2d.from_norm(norm.eval())


def test_wrong_shapes_and_biases_are_refused() -> None:
    with pytest.raises(AdderizeError, match="one value a channel"):
        ShiftAddNorm2d(torch.ones(3), torch.ones(4))
    with pytest.raises(AdderizeError, match="bias is nan"):
        ShiftAddNorm2d(torch.ones(2), torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "reflect", "bias": False},
        {"groups": 2, "padding": 1, "padding_mode": "circular"},
    ],
)
def test_a_convolution_with_enough_terms_is_the_convolution(options: dict[str, object]) -> None:
    convolution, x = nn.Conv2d(4, 6, 3, **options), torch.randn(2, 4, 9, 8)  # type: ignore[arg-type]
    form = ShiftAddConv2d(convolution, terms=24)
    assert torch.allclose(form(x), convolution(x), atol=1e-6)
    assert torch.allclose(form(x[0]), convolution(x[0]), atol=1e-6)


def test_a_convolution_of_timm_with_padding_by_size() -> None:
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    convolution = conv2d_same.Conv2dSame(3, 4, 3, stride=2)
    form = ShiftAddConv2d(convolution, terms=24)
    for side in (7, 8):
        x = torch.randn(1, 3, side, side + 1)
        assert torch.allclose(form(x), convolution(x), atol=1e-6)


def test_a_linear_layer_has_rounded_weights() -> None:
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    form = ShiftAddLinear(linear.weight, linear.bias, terms=2)
    weights = [float(nearest_by_search(w, 2)) for w in linear.weight.flatten().tolist()]
    expected = F.linear(x, torch.tensor(weights).view(3, 5), linear.bias)
    assert torch.allclose(form(x), expected, atol=1e-6)


def test_slopes_and_constant_factors() -> None:
    x = torch.randn(2, 3, 4, 4)
    leaky = ShiftAddLeakyReLU(torch.tensor(0.01), terms=24)
    assert torch.allclose(leaky(x), F.leaky_relu(x, 0.01), atol=1e-7)
    slopes = torch.tensor([0.1, 0.25, -0.5])
    assert torch.allclose(ShiftAddLeakyReLU(slopes, terms=24)(x), F.prelu(x, slopes), atol=1e-7)
    assert torch.allclose(ShiftAddScale(torch.tensor(0.3), terms=2)(x), 0.3125 * x)


@pytest.mark.parametrize("terms", [1, 3])
def test_means_scale_sums(terms: int) -> None:
    x = torch.randn(2, 3, 6, 10)
    scale = float(nearest_by_search(1 / 60, terms))
    assert torch.allclose(ShiftAddMean((2, 3), terms=terms)(x), x.sum((2, 3)) * scale, atol=1e-6)
    pooled = ShiftAddAdaptiveAvgPool2d(1, terms=terms)(x)
    assert torch.allclose(pooled, x.sum((2, 3), keepdim=True) * scale, atol=1e-6)
    assert torch.allclose(ShiftAddMean((2, 3), terms=24)(x), x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [(2,), (3, 1), (3, 2, 1), ((2, 4), (1, 2)), (3, 5), ((8, 12),), (3, 1, (0, 1))]
)
def test_average_pooling(arguments: tuple[object, ...]) -> None:
    x = torch.randn(2, 3, 8, 12)
    expected = F.avg_pool2d(x, *arguments)  # type: ignore[arg-type]
    found = ShiftAddAvgPool2d(*arguments, terms=24)(x)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=1e-6)


def test_average_pooling_keeps_the_memory_format() -> None:
    x = torch.randn(2, 3, 8, 12).contiguous(memory_format=torch.channels_last)
    assert ShiftAddAvgPool2d(3, 1)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(2, 3), (4, None), 2, 1])
def test_adaptive_average_pooling(size: object) -> None:
    x = torch.randn(2, 3, 8, 12)
    found = ShiftAddAdaptiveAvgPool2d(size, terms=24)(x)  # type: ignore[arg-type]
    assert torch.allclose(found, nn.AdaptiveAvgPool2d(size)(x), atol=1e-6)  # type: ignore[arg-type]


def test_adaptive_pooling_with_unlike_windows_is_refused() -> None:
    with pytest.raises(AdderizeError, match="windows of several sizes"):
        ShiftAddAdaptiveAvgPool2d(3)(torch.randn(1, 2, 8, 8))


def layers() -> list[nn.Module]:
    return [
        ShiftAddNorm2d(torch.randn(4), torch.randn(4)),
        ShiftAddConv2d(nn.Conv2d(4, 4, 3, padding=1)),
        ShiftAddLinear(torch.randn(3, 6), None),
        ShiftAddScale(torch.randn(4, 1, 1)),
        ShiftAddLeakyReLU(torch.tensor(0.2)),
        ShiftAddMean((2, 3)),
    ]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_layers_save_load_copy_print_and_compile_to_fx(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6)
    assert all(not p.is_floating_point() or "bias" in n for n, p in layer.state_dict().items())
    other = copy.deepcopy(layer)
    for name, buffer in other.named_buffers():
        if name in ("exponents", "signs", "bias"):
            buffer.zero_()
    other.load_state_dict(layer.state_dict())
    expected = layer(x)
    assert torch.equal(other(x), expected) and torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(layer))(x), expected)
    assert torch.equal(torch.jit.trace(layer, x)(x), expected)
    assert "terms=" in repr(layer)
