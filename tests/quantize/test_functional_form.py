"""Changes in place: those that a graph shows are computed, others are not traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.quantize.networks import Two, check, prepared


def statement(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def between(y: Tensor) -> Tensor:
        change(y)
        return y

    return between


def read_again(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda y: change(y) + y


def power(y: Tensor) -> Tensor:
    y **= 2
    return y


def floor(y: Tensor) -> Tensor:
    y //= 0.5
    return y


CHANGES = {
    "relu_": torch.relu_,
    "clamp_": lambda y: torch.clamp_(y, 0.0, 1.0),
    "clip_": lambda y: torch.clip_(y, max=0.5),
    "hardtanh_": lambda y: F.hardtanh_(y, 0.0, 1.0),
    "elu_": F.elu_,
    "threshold_": lambda y: F.threshold_(y, 0.5, 0.0),
    "leaky_relu by position": lambda y: F.leaky_relu(y, 0.1, True),
    "hardtanh by position": lambda y: F.hardtanh(y, -0.5, 0.5, True),
    "silu by name": lambda y: F.silu(y, inplace=True),
    "mish": lambda y: F.mish(y, True),
    "dropout": lambda y: F.dropout(y, 0.5, False, True),
    "neg_": lambda y: y.neg_(),
    "mul_": lambda y: y.mul_(2.0),
    "masked_fill_": lambda y: y.masked_fill_(y > 1, 0.0),
    "copy_": lambda y: y.copy_(y.abs()),
    "addcmul_": lambda y: y.addcmul_(y, y, value=0.5),
    "out": lambda y: torch.add(y, 1.0, out=y),
    "out of another": lambda y: torch.mul(y * 2, 0.5, out=y),
}


@pytest.mark.parametrize("how", [statement, read_again])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name, how):
    check(prepared(Two(how(CHANGES[name]))))


def of_half(y: Tensor) -> Tensor:
    y[:, :4].neg_()
    return y


def of_view(y: Tensor) -> Tensor:
    flat = y.view(len(y), -1)
    y.clamp_(max=0.5)
    return flat.view_as(y)


def of_storage(y: Tensor) -> Tensor:
    y.data.mul_(-1.0)
    return y


def of_list(y: Tensor) -> Tensor:
    torch._foreach_neg_([y])
    return y


def of_part(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


HIDDEN = [of_half, of_view, of_storage, of_list, of_part, statement(power), statement(floor)]


@pytest.mark.parametrize("change", HIDDEN)
def test_changes_that_a_graph_does_not_show_are_not_traced(change):
    check(prepared(Two(change)), traced=False)


def test_one_half_may_be_changed_where_the_other_is_read():
    def halves(y: Tensor) -> Tensor:
        kept, changed = y.chunk(2, 1)
        changed.neg_()
        return torch.cat([kept, changed], 1)

    check(prepared(Two(halves)))
