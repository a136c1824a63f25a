"""Grids, ranges and the exact clamping of filters, by hand and in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adderize import AdderizeError
from adderize.quantize.observe import Observer, calibration_inputs
from adderize.quantize.qparams import QParams, quantize_filters


def seen(*batches: Tensor) -> Observer:
    found = Observer()
    for values in batches:
        found.update(values, "here")
    return found


@pytest.mark.parametrize(
    ("low", "high", "bits", "with_zero", "scale", "zero_point"),
    [
        (0.0, 2.55, 8, True, 0.01, 0),
        (-1.0, 1.55, 8, False, 0.01, 100),
        (1.0, 2.55, 8, True, 0.01, 0),
        (1.0, 3.55, 8, False, 0.01, -100),
        (-3.0, -1.5, 4, False, 0.1, 30),
        (-1.5, -0.5, 4, True, 0.1, 15),
        (0.0, 0.3, 2, True, 0.1, 0),
        (2.0, 2.0, 8, True, 2 / 255, 0),
        (0.0, 0.0, 8, True, 1 / 255, 0),
    ],
)
def test_grids_by_hand(low, high, bits, with_zero, scale, zero_point):
    grid = QParams.covering(low, high, bits, with_zero=with_zero)
    assert grid.scale == pytest.approx(scale) and grid.zero_point == zero_point


def test_values_go_to_the_nearest_step_and_outside_to_the_ends():
    grid = QParams(0.5, 10, 4)
    values = torch.tensor([-9.0, -5.0, -0.3, 0.0, 0.2, 0.26, 2.5, 9.0, -math.inf, math.inf])
    assert grid.to_bytes(values).tolist() == [0, 0, 9, 10, 10, 11, 15, 15, 0, 15]
    assert [grid.nearest(float(v)) for v in values] == grid.to_bytes(values).tolist()
    assert grid.to_float(torch.tensor([0, 10, 15], dtype=torch.uint8)).tolist() == [-5, 0, 2.5]


def test_integers_have_no_place_on_a_grid():
    with pytest.raises(AdderizeError, match="int64"):
        QParams(1.0, 0, 8).to_bytes(torch.arange(3))


@pytest.mark.parametrize("grid", [QParams(0.02, 0, 8), QParams(0.02, 100, 8), QParams(0.1, -50, 8)])
def test_clamping_changes_no_distance(grid):
    """For every x in the range: filters on the grid's lines, inside and outside the range."""
    lines = torch.arange(-300, 600, dtype=torch.float64) * grid.scale
    weight = lines[torch.randint(len(lines), (6, 3, 2, 2))]
    filters = quantize_filters(weight, grid)
    x = grid.low + grid.scale * torch.arange(256, dtype=torch.float64)
    distances = (x[:, None, None] - weight.flatten(1)).abs().sum(2)
    q = filters.weight.flatten(1).double()
    clamped = (torch.arange(256.0).double()[:, None, None] - q).abs().sum(2)
    assert torch.allclose(grid.scale * clamped + filters.constant, distances, atol=1e-9)
    outside = (weight < grid.low - 1e-9) | (weight > grid.high + 1e-9)
    assert filters.clamped == pytest.approx(float(outside.double().mean()), abs=0.02)


def test_minmax_percentile_and_mse_of_known_values():
    values = torch.cat([torch.linspace(0, 1, 100_000), torch.tensor([100.0])])
    found = seen(values[:50_000], values[50_000:])
    minmax, percentile, mse = (
        found.qparams(method, 8, with_zero=True) for method in ("minmax", "percentile", "mse")
    )
    assert minmax.high == pytest.approx(100)
    assert percentile.high == pytest.approx(1, abs=1e-3)
    error = [
        float((grid.to_float(grid.to_bytes(values)) - values).square().mean())
        for grid in (minmax, percentile, mse)
    ]
    assert error[2] <= min(error)


def test_a_sample_of_many_values_is_even():
    found = Observer()
    for start in range(0, 4_000_000, 500_000):
        found.update(torch.arange(start, start + 500_000, dtype=torch.float32), "here")
    sample = found.sample
    assert 2**18 < len(sample) <= 2**20 and float(sample.median()) == pytest.approx(2e6, rel=0.1)
    assert (found.low, found.high) == (0, 3_999_999)


def test_a_sample_does_not_prefer_columns():
    """Padding makes the first column of an image different from all others."""
    found = Observer()
    batch = torch.zeros(64, 64, 16, 16)
    batch[..., 0] = 1
    for _ in range(8):
        found.update(batch, "here")
    assert float(found.sample.mean()) == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_ranges_are_finite(value):
    with pytest.raises(AdderizeError, match="at here"):
        seen(torch.tensor([1.0, value, 2.0]))


@pytest.mark.parametrize(
    "batches", [[], 5, ["image"], [()], [torch.arange(3)], [torch.empty(0, 3)], None]
)
def test_calibration_that_is_none(batches):
    with pytest.raises(AdderizeError, match="calibration"):
        list(calibration_inputs(batches, torch.device("cpu")))


def test_calibration_as_loaders_give_it():
    x = torch.randn(2, 3)
    for batches in ([x], [(x, 1)], [[x, 1]], iter([x]), x):
        (found,) = calibration_inputs(batches, torch.device("cpu"))
        assert torch.equal(found, x)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("zero_point", [0, 100, -30])
def test_filters_of_few_bits_are_multiples_and_keep_distances_below_the_highest(bits, zero_point):
    grid = QParams(0.02, zero_point, 8)
    weight = torch.randn(6, 40, dtype=torch.float64) * 4
    filters = quantize_filters(weight, grid, bits)
    step = 2 ** (8 - bits)
    assert set(filters.weight.unique().tolist()) <= {step * q for q in range(2**bits)}
    top = (255 // step * step - zero_point) * 0.02
    inputs = grid.low + (top - grid.low) * torch.rand(5, 1, 40, dtype=torch.float64)
    exact = (inputs - weight).abs().sum(-1)
    clamped = (inputs - weight.clamp(grid.low, top)).abs().sum(-1) + filters.constant
    assert torch.allclose(exact, clamped)
    rounded = (grid.to_float(filters.weight).double() - weight.clamp(grid.low, top)).abs()
    assert float(rounded.max()) <= 0.02 * step / 2 + 1e-6
