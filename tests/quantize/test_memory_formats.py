"""Memory formats are those of the float network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.quantize.networks import Outer, Two, X, check, prepared


class Views(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.view(y.size(0), -1)


@pytest.mark.parametrize("traced", [True, False])
def test_views_behind_8_bit_layers(traced):
    model = prepared(Views())
    check(model if traced else Outer(model).eval(), traced=traced)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("end", ["head", "adder", "pool", "single"])
def test_outputs_have_the_format_of_the_float_network(traced, end):
    model = prepared(Two())
    if end == "adder":
        model.head = nn.Identity()
    if end == "pool":
        model.head = nn.MaxPool2d(2)
    if end == "single":
        model, traced = model.a, False
    images = X if end != "single" else torch.randn(2, 8, 9, 9)
    quantized = check(model if traced else Outer(model).eval(), traced=traced, images=images)
    quantized(images).view(-1)
    assert quantized(images).stride() == model(images).stride()
    nhwc = images.contiguous(memory_format=torch.channels_last)
    assert quantized(nhwc).stride() == model(nhwc).stride()
