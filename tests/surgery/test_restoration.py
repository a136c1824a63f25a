"""Layers that cannot become what they came from: named, and the model left alone."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
)

from adderize import AdderConv2d, AdderizeError, restore
from tests.surgery.test_adderize import small_cnn


class OwnAdder(AdderConv2d):
    pass


def test_restore_without_adders():
    with pytest.raises(AdderizeError, match="no adder layers"):
        restore(small_cnn())


def test_restore_of_a_subclass_leaves_the_model_alone():
    model = nn.Sequential(AdderConv2d(3, 4, 3), OwnAdder(4, 4, 3))
    with pytest.raises(AdderizeError, match="1 is a OwnAdder"):
        restore(model)
    assert [type(layer) for layer in model] == [AdderConv2d, OwnAdder]


def test_restore_of_filters_that_are_computed():
    model = nn.Sequential(AdderConv2d(3, 4, 3), AdderConv2d(4, 4, 3))
    parametrizations.weight_norm(model[1])
    with pytest.raises(AdderizeError, match=r"1 computes its filters .*remove_parametrizations"):
        restore(model)
    assert type(model[0]) is AdderConv2d
    parametrize.remove_parametrizations(model[1], "weight")
    assert [type(layer) for layer in restore(model)] == [nn.Conv2d, nn.Conv2d]
