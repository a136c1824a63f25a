"""Models whose forward asks for the class of a layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderizeError, adderize, binarize, plan
from tests.surgery.test_adderize import adder_names, small_cnn


class Asking(nn.Module):
    """Layers in a list, applied one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for block in small_cnn()[:3] for layer in block)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.apply_layer(layer, x)
        return x.mean((2, 3))


class SkipsOthers(Asking):
    def apply_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x) if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) else x.relu()


class ActivatesConvolutions(Asking):
    def apply_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).sigmoid() if type(layer) is nn.Conv2d else layer(x)


class Untraceable(SkipsOthers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[: len(x)])  # torch.fx knows no len


class Insists(Asking):
    def apply_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert not type(layer).__name__.endswith(("AdderConv2d", "BinaryConv2d"))
        return layer(x)


class TakesBoth(Asking):
    def apply_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x) if isinstance(layer, nn.modules.conv._ConvNd) else x.relu()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (SkipsOthers, r"layers\.3 1 before and 0 after"),
        (ActivatesConvolutions, "sigmoid 3 before and 2 after"),
        (Untraceable, r"layers\.3 1 before and 0 after"),
        (Insists, "it fails"),
    ],
)
@pytest.mark.parametrize("convert", [adderize, binarize])
def test_a_forward_that_does_something_else_with_adders(kind, words, convert) -> None:
    model = kind()
    before, attributes = copy.deepcopy(model.state_dict()), [*map(dict, map(vars, model.modules()))]
    with pytest.raises(AdderizeError, match=words):
        convert(model)
    assert [*map(vars, model.modules())] == attributes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert plan(model).converted  # what it would convert can be looked at, and left out


def test_a_forward_that_asks_for_what_both_are() -> None:
    model = adderize(TakesBoth())
    assert adder_names(model) == ["layers.3"]
    calls = []
    model.layers[3].register_forward_hook(lambda *_: calls.append(3))
    model(torch.randn(2, 3, 8, 8))
    assert calls == [3]
