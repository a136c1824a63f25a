"""Filters and layers that a conversion cannot take as they are, or only in inference mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdderConv2d, AdderizeError, adderize, load_model, plan, restore, save_model
from tests.surgery.test_adderize import adder_names, small_cnn


def expanded(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(torch.randn(1, 8, 3, 3).expand(8, 8, 3, 3))


def expanded_bias(conv: nn.Conv2d) -> None:
    conv.bias = nn.Parameter(torch.zeros(1).expand(8))


def sparse(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach().to_sparse())


def norm_in_a_child(conv: nn.Conv2d) -> None:
    conv.norm = nn.BatchNorm2d(8)


def norm_as_a_word(conv: nn.Conv2d) -> None:
    conv.norm = "batch"


def gradient_of_ones_own(conv: nn.Conv2d) -> None:
    conv.gradient = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (expanded, r"2\.0 .* has a weight that no operator can change in place"),
        (expanded_bias, r"2\.0 .* has a bias that no operator can change in place"),
        (sparse, r"2\.0 .* has a weight that no operator can change in place"),
        (norm_in_a_child, r"2\.0 .* has an attribute norm of its own"),
        (norm_as_a_word, r"2\.0 .* has an attribute norm of its own"),
        (gradient_of_ones_own, r"2\.0 .* has an attribute gradient of its own"),
    ],
)
@pytest.mark.parametrize("call", [plan, adderize])
def test_layers_that_cannot_become_adders(
    change: Callable[[nn.Conv2d], None], words: str, call: Callable[..., Any]
) -> None:
    model = small_cnn()
    model[2][0] = nn.Conv2d(8, 8, 3)
    change(model[2][0])
    before = model[1][0].weight.detach().clone()
    attributes = dict(vars(model[2][0]))
    with pytest.raises(AdderizeError, match=words):
        call(model)
    assert not adder_names(model) and vars(model[2][0]) == attributes
    assert torch.equal(model[1][0].weight, before)
    assert adder_names(adderize(model, exclude="2.0")) == ["1.0"]


def test_saved_adders_replace_no_attributes(tmp_path) -> None:
    save_model(adderize(small_cnn()), tmp_path / "saved")
    model = small_cnn()
    norm_as_a_word(model[1][0])
    with pytest.raises(AdderizeError, match=r"1\.0 .* has an attribute norm of its own"):
        load_model(model, tmp_path / "saved")
    assert not adder_names(model) and model[1][0].norm == "batch"


def test_a_child_of_a_layer_is_not_tied_to_it() -> None:
    model = small_cnn()
    model[1][0].act = nn.PReLU()
    assert adder_names(adderize(model)) == ["1.0", "2.0"]
    assert isinstance(restore(model)[1][0].act, nn.PReLU)


@pytest.mark.parametrize("init", ["rescale", "normal"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_made_in_inference_mode(init: str, inside: bool) -> None:
    with torch.inference_mode():
        model = small_cnn().eval()
        nn.init.zeros_(model[1][1].weight)
    before = model[1][0].weight.detach().clone()
    copied = adderize(model, init=init, inplace=False)
    with torch.inference_mode(inside):
        adderize(model, init=init)
    deviation = 8 if init == "rescale" else 1
    if init == "rescale":
        expected = before * deviation / before.std(correction=0)
        torch.testing.assert_close(model[1][0].weight.detach(), expected)
        torch.testing.assert_close(copied[1][0].weight.detach(), expected)
    assert model[1][0].weight.detach().std().item() == pytest.approx(deviation, rel=0.1)
    assert bool((model[1][1].weight == 1).all())
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()
    copied.train()(torch.randn(2, 3, 8, 8)).sum().backward()  # its copy can be trained
    assert isinstance(copied[1][0], AdderConv2d) and copied[1][0].weight.grad is not None


def test_without_gradients_parameters_still_want_them() -> None:
    model = copy.deepcopy(small_cnn())
    with torch.no_grad():
        adderize(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
