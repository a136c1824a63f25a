"""Results in classes of their own: quantized networks keep them, and what they hold is compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from adderize.quantize import quantize, quantize_report
from tests.quantize.networks import Two, X, prepared, relative_error


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    first: Tensor
    second: Tensor


@dataclass
class Output(OrderedDict[str, Any]):
    """As transformers' outputs are, which are registered as trees."""

    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        self.update(first=self.first, second=self.second)


pytree.register_pytree_node(
    Output,
    lambda output: ([*output.values()], None),
    lambda values, _: Output(*values),
    serialized_type_name="tests.Output",
)


@dataclass
class Doubled:
    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        self.first = 2 * self.first


class Giving(Two):
    def __init__(self, kind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return self.kind(y, y.relu())


@pytest.mark.parametrize(
    ("kind", "traced"), [(Pair, True), (Record, True), (Output, True), (Doubled, False)]
)
def test_results_keep_their_class(kind, traced: bool) -> None:
    model = prepared(Giving(kind))
    expected = model(X)
    quantized = quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule) == traced
    given = quantized(X)
    assert type(given) is kind
    assert relative_error(given.first, expected.first) < 0.1
    assert relative_error(given.second, expected.second) < 0.1


def test_what_a_dataclass_holds_is_compared() -> None:
    """Of a network with random results every call is another one, traced or not."""
    model = prepared(Giving(lambda y, z: Record(y + torch.randn(1), z)))
    remark = "a second call gives another result"
    assert remark in str(quantize_report(quantize(model, [X])).remarks)
