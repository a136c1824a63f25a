"""The rows of a budget: layers with their operations, grouped, summed up, and what has no row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from adderize.errors import AdderizeError
from adderize.formulas import FREE, Operations


class Views(NamedTuple):
    """The same computation as a convolutional network, and as the adder or binary network."""

    before: Operations = FREE
    after: Operations = FREE


@dataclass(frozen=True)
class Layer:
    """One row of a budget: a layer, or all layers below a common prefix.

    Attributes:
        name: qualified name; "" for what the model computes outside of its submodules.
        kind: "adder", "binary", "convolution", "linear", "norm" or "other"; "mixed" for a group.
        type: class name; "" for a group.
        output: shape of the last result for one example; empty for a group.
        by_dtype: operations by the format of their numbers, a name of
            ``adderize.counting.costs.ENERGY``; `before` and `after` are their sums.
    """

    name: str
    kind: str
    type: str
    output: tuple[int, ...]
    by_dtype: Mapping[str, Views]

    @cached_property
    def before(self) -> Operations:
        """Operations as a convolutional network."""
        return sum((views.before for views in self.by_dtype.values()), FREE)

    @cached_property
    def after(self) -> Operations:
        """Operations as an adder network, or as the binary network that it is."""
        return sum((views.after for views in self.by_dtype.values()), FREE)

    @property
    def arithmetic(self) -> int:
        """Multiplications, additions and shifts, of the view that has more of them."""
        return max(view.flops + view.shifts for view in (self.before, self.after))


@dataclass(frozen=True)
class Uncounted:
    """Calls of an operator that no formula is known for; their operations are in no total."""

    operator: str
    layer: str
    calls: int

    def __str__(self) -> str:
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        return f"{self.operator} in {self.layer or 'the model itself'}, {calls}"


def of_kind(layers: Iterable[Layer], kind: str) -> list[Layer]:
    """
    Raises:
        AdderizeError: no layer is of that kind.
    """
    layers = list(layers)
    found = [layer for layer in layers if layer.kind == kind]
    if not found:
        kinds = ", ".join(sorted({layer.kind for layer in layers}))
        raise AdderizeError(f"no layer is of kind {kind!r}; there are: {kinds}")
    return found


def sum_of(layers: Iterable[Layer], name: str) -> Layer:
    """One row for many layers: their common kind, or "mixed"."""
    layers = list(layers)
    kinds = {layer.kind for layer in layers}
    return Layer(
        name,
        kinds.pop() if len(kinds) == 1 else "mixed",
        "",
        (),
        merged(layer.by_dtype for layer in layers),
    )


def merged(parts: Iterable[Mapping[str, Views]]) -> dict[str, Views]:
    """Sums by format, of the formats that compute something."""
    sums: dict[str, Views] = {}
    for part in parts:
        for dtype, views in part.items():
            if views != Views():
                former = sums.get(dtype, Views())
                sums[dtype] = Views(former.before + views.before, former.after + views.after)
    return sums


def grouped(layers: Iterable[Layer], depth: int) -> list[Layer]:
    """One row for all layers that share their first `depth` names.

    Raises:
        AdderizeError: `depth` is less than 1.
    """
    if depth < 1:
        raise AdderizeError(f"depth is {depth}; expected 1 or more")
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    return [
        replace(rows[0], name=name) if len(rows) == 1 else sum_of(rows, name)
        for name, rows in groups.items()
    ]
