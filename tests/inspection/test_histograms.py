"""Histograms of filters and inputs against NumPy's."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from adderize import AdderConv2d
from adderize.inspection import inspect
from adderize.inspection.histograms import BINS, filter_histograms, input_histograms


def test_counts_are_numpys() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), AdderConv2d(3, 4, 3, padding=1)).train()
    x = torch.randn(70, 2, 8, 8)
    rows = inspect(model, x).layers
    filters, inputs = filter_histograms(model, rows), input_histograms(model, x, rows)
    assert list(filters) == list(inputs) == ["0", "2"]
    values = {"0": x, "2": model[:2](x).detach()}
    for name, row in zip(("0", "2"), rows, strict=True):
        assert row.inputs is not None
        for found, tensor, covered in (
            (filters[name], model[int(name)].weight.detach(), row.filters),
            (inputs[name], values[name], row.inputs),
        ):
            assert (found.low, found.high) == tuple(covered)
            assert sum(found.counts) == tensor.numel()
            expected, _ = np.histogram(tensor.double().numpy(), BINS, tuple(covered))
            # Values on an edge may fall on either side of it in float32.
            assert np.abs(expected - np.array(found.counts)).sum() <= 2
    assert model.training and not model[0]._forward_pre_hooks


def test_one_value_and_no_finite_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[1].weight.fill_(float("nan"))
    rows = inspect(model).layers
    found = filter_histograms(model, rows)
    assert list(found) == ["0"] and sum(found["0"].counts) == 2
    assert found["0"].low == 1.5 and found["0"].high == 4.5
