"""Methods put on an instance decide what it computes, whatever its class."""

from __future__ import annotations

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adderize import AdderizeError, adderize, plan, restore
from adderize.surgery import Reason
from tests.surgery.test_adderize import adder_names, small_cnn


def wrapped(layer: nn.Module) -> None:
    layer.forward = functools.partial(layer.forward)


def rewritten(layer: nn.Module) -> None:
    layer.forward = types.MethodType(
        lambda self, x: F.conv2d(x, self.weight, self.bias, self.stride, self.padding), layer
    )


def inner(layer: nn.Module) -> None:
    layer._conv_forward = lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("replace", [wrapped, rewritten, inner])
def test_a_layer_whose_forward_was_replaced_is_kept_and_named(replace):
    model, x = small_cnn().eval(), torch.randn(2, 3, 8, 8)
    replace(model[1][0])
    before = model[:2](x)
    row = next(row for row in plan(model).rows if row.name == "1.0")
    assert row.decision == "keep" and row.why is Reason.OWN_FORWARD
    assert row.reason == "has a forward of its own, put on the instance"
    adderize(model)
    assert adder_names(model) == ["2.0"]
    assert torch.equal(model[:2](x), before)
    with pytest.raises(AdderizeError, match="nothing to convert"):
        adderize(restore(model), include="1.0")


def test_a_forward_that_was_put_on_an_adder_stands_in_the_way_of_restore():
    model = adderize(small_cnn())
    wrapped(model[1][0])
    with pytest.raises(AdderizeError, match=r"1\.0 .*del layer\.forward"):
        restore(model)
    assert adder_names(model) == ["1.0", "2.0"]
    del model[1][0].forward
    restore(model)


def test_a_forward_on_a_block_or_on_the_model_is_what_counts():
    model = small_cnn()
    skipped = model[1]
    skipped.forward = lambda x: x
    assert [row.reason[:12] for row in plan(model).rows][1] == "never called"
    model = small_cnn()
    model.forward = lambda x: model[3:](model[0](x))
    rows = {row.name: row for row in plan(model).rows}
    assert {row.method for row in rows.values()} == {"hooks"}
    assert rows["1.0"].reason.startswith("never called")
