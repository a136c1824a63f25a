"""Filters of adders that are as small as a convolution's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import AdderConv2d, AdderLinear
from adderize.surgery.small_filters import deviation_of_convolutions


def with_deviations(*deviations: float) -> nn.ModuleList:
    layers = nn.ModuleList([AdderConv2d(2, 50, 3), AdderLinear(10, 90), AdderLinear(10, 90)])
    for layer, deviation in zip(layers, deviations, strict=True):
        values = torch.randn(layer.weight.shape, dtype=torch.float64)
        values = (values - values.mean()) / (values - values.mean()).square().mean().sqrt()
        layer.weight.data.copy_(values * deviation)
    return layers


def test_most_of_the_adders_count() -> None:
    assert deviation_of_convolutions(with_deviations(8, 0.1, 0.2)) == pytest.approx(0.2, rel=1e-4)
    assert deviation_of_convolutions(with_deviations(0.1, 1, 8)) is None


def test_other_layers_do_not_count() -> None:
    assert deviation_of_convolutions([nn.Conv2d(2, 50, 3), nn.Linear(10, 90)]) is None
