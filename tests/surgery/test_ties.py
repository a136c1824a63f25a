"""Filters that something else computes with: named, and the model left alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import (
    parameters_to_vector,
    vector_to_parameters,
)

from adderize import AdderizeError, AdderLinear, adderize, plan
from tests.surgery.test_adderize import adder_names, small_cnn


def tied_convolutions() -> nn.Sequential:
    model = small_cnn()
    model.insert(2, nn.Conv2d(8, 8, 3, padding=1))
    model[2].weight = model[1][0].weight
    return model


def convolutions_in_one_memory() -> nn.Sequential:
    model = tied_convolutions()
    model[2].weight = nn.Parameter(model[1][0].weight)
    return model


def part_of_another_memory() -> nn.Sequential:
    model = tied_convolutions()
    model[2] = nn.Conv2d(8, 4, 3, padding=1)
    model[2].weight.data = model[1][0].weight.data[2:6]
    model.insert(3, nn.Conv2d(4, 8, 3, padding=1))
    return model


def tied_embedding() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 7))
    model[3].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (tied_convolutions, {"exclude": "2"}, r"1\.0 shares its filters with 2, which stays"),
        (tied_convolutions, {"include": "2"}, r"2 shares its filters with 1\.0, which stays"),
        (tied_embedding, {"linear": True, "head": True}, r"3 shares its filters with 0, which"),
        (convolutions_in_one_memory, {"exclude": "2"}, r"1\.0 shares its filters with 2, which"),
        (convolutions_in_one_memory, {"include": "2"}, r"2 shares its filters with 1\.0, which"),
        (part_of_another_memory, {"exclude": "2"}, r"1\.0 shares its filters with 2, which"),
    ],
)
def test_filters_tied_to_what_stays(build, options, words):
    model = build()
    before = copy.deepcopy(model.state_dict())
    for call in (plan, adderize):
        with pytest.raises(AdderizeError, match=words):
            call(model, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TiedDecoder(nn.Module):
    """A decoder that multiplies by the encoder's weights in one of torch's many ways."""

    def __init__(self, product) -> None:
        super().__init__()
        self.stem, self.encoder = nn.Linear(6, 10), nn.Linear(10, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(10, 6)
        self.product = product

    def forward(self, x):
        codes = self.norm(self.encoder(self.stem(x)))
        return self.head(self.product(codes, self.encoder.weight))


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: F.linear(x, w.t()),
        lambda x, w: x @ w,
        lambda x, w: torch.mm(x, w),
        lambda x, w: torch.bmm(x[None], w[None])[0],
        lambda x, w: torch.baddbmm(x.sum(), x[None], w[None])[0],
        lambda x, w: torch.einsum("bi,ij->bj", x, w),
        lambda x, w: torch.tensordot(x, w, dims=1),
        lambda x, w: torch.inner(x, w.t()),
        lambda x, w: (x[:, :, None] * w).sum(1),
    ],
)
@pytest.mark.parametrize("traceable", [True, False])
def test_filters_that_multiply_elsewhere(product, traceable):
    def forward(x, w):
        return product(x, w) if traceable or len(x) > 0 else x  # torch.fx knows no len

    model = TiedDecoder(forward)
    with pytest.raises(AdderizeError, match="encoder shares its filters with a call of"):
        adderize(model, linear=True)
    assert type(model.encoder) is nn.Linear
    adderize(model, linear=True, exclude="encoder", stem=True)
    assert isinstance(model.stem, AdderLinear)


def test_a_penalty_on_filters_is_no_product():
    def penalised(x, w):
        return x @ torch.ones(4, 10) + (w @ w.t()).square().sum()

    assert isinstance(adderize(TiedDecoder(penalised), linear=True).encoder, AdderLinear)


def test_parts_of_one_vector_are_not_tied():
    model = small_cnn()
    vector = parameters_to_vector(model.parameters()).detach()
    vector_to_parameters(vector, model.parameters())
    kept = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("1.")}
    adderize(model, include="1.*")
    assert adder_names(model) == ["1.0"]
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in kept.items())


def test_tied_filters_that_are_converted_together():
    model = adderize(tied_convolutions())
    assert model[2].weight is model[1][0].weight
    assert adder_names(model) == ["1.0", "2", "3.0"]


class Penalised(nn.Module):
    """A network that keeps its filters in a list too, or hands them to a module of its own."""

    def __init__(self, holder) -> None:
        super().__init__()
        self.net = small_cnn()
        self.holder = holder(self.net[1][0].weight)

    def forward(self, x):
        y = self.net(x)
        return y + self.holder(y) if callable(getattr(self.holder, "penalty", None)) else y


class Penalty(nn.Module):
    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = weight

    def penalty(self):
        return self.weight.square().sum()

    def forward(self, y):
        return self.penalty()


class Twice(Penalty):
    def forward(self, y):
        return F.conv2d(y[:, :, None, None].repeat(1, 2, 3, 3), self.weight).sum()


@pytest.mark.parametrize(
    "holder",
    [
        lambda weight: nn.ParameterList([weight]),
        lambda weight: nn.ParameterDict({"filters": weight}),
        lambda weight: nn.ModuleList([nn.ParameterList([weight])]),
        Penalty,
    ],
    ids=["list", "dict", "nested", "module"],
)
def test_who_only_holds_filters_does_no_harm(holder):
    model = Penalised(holder)
    weight = model.net[1][0].weight
    adderize(model)
    assert adder_names(model) == ["net.1.0", "net.2.0"]
    assert next(model.holder.parameters()) is weight is model.net[1][0].weight
    model(torch.randn(2, 3, 8, 8)).sum().backward()


def test_parameters_that_a_user_put_on_a_layer_are_no_filters():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_cnn()
            self.net[1][0].scale = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))

        def forward(self, x):
            block = self.net[1]
            y = block[0](self.net[0](x)) * block[0].scale
            return self.net[3:](self.net[2](block[1:](y)))

    model = adderize(Scaled())
    assert adder_names(model) == ["net.1.0", "net.2.0"]
    assert bool((model.net[1][0].scale == 2).all())


@pytest.mark.parametrize("direct", [False, True], ids=["holder", "layer's own"])
def test_who_computes_a_convolution_with_filters_is_named(direct):
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_cnn()

        def forward(self, x):
            conv = self.net[1][0]
            return self.net(x), F.conv2d(conv(self.net[0](x)), conv.weight)

    model = Reading() if direct else Penalised(Twice)
    with pytest.raises(AdderizeError, match=r"net\.1\.0 shares its filters with .*conv2d"):
        adderize(model)
    assert adder_names(adderize(model, exclude="net.1.0")) == ["net.2.0"]
