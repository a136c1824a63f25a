"""What a network computes, layer by layer, as a convolutional and as an adder network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adderize.counting.costs import CostTable
from adderize.counting.formulas import FREE, KINDS, Operations
from adderize.errors import AdderizeError

SORT_KEYS = (*KINDS, "energy_joule", "latency_cycles")


@dataclass(frozen=True)
class Layer:
    """One row of a budget: a layer, or all layers below a common prefix.

    Attributes:
        name: qualified name; "" for what the model computes outside of its submodules.
        kind: "adder", "binary", "convolution", "linear", "norm" or "other"; "mixed" for a group.
        type: class name; "" for a group.
        output: shape of the last result for one example; empty for a group.
        before: operations as a convolutional network.
        after: operations as an adder network, or as the binary network that it is.
    """

    name: str
    kind: str
    type: str
    output: tuple[int, ...]
    before: Operations
    after: Operations


@dataclass(frozen=True)
class Uncounted:
    """Calls of an operator that no formula is known for; their operations are in no total."""

    operator: str
    layer: str
    calls: int


@dataclass(frozen=True)
class OpBudget:
    """Operations for one example, before (convolutions) and after (adders).

    Attributes:
        model: class name of the model.
        input_size: of one example, without the batch.
        before, after: of the whole network, whatever rows are selected.
        layers: in order of execution.
        uncounted: what the totals leave out.
        energy, latency: the tables that costs are computed with.
    """

    model: str
    input_size: tuple[int, ...]
    before: Operations
    after: Operations
    layers: tuple[Layer, ...]
    uncounted: tuple[Uncounted, ...]
    energy: CostTable
    latency: CostTable

    def select(
        self, *, only: str | None = None, depth: int | None = None, sort: str | None = None
    ) -> OpBudget:
        """The same budget with other rows; the totals stay those of the whole network.

        Args:
            only: a kind of layer, such as ``"adder"``.
            depth: sum up all layers that share their first `depth` names.
            sort: a kind of operation, ``"energy_joule"`` or ``"latency_cycles"``, largest first,
                of the adder network, or of the convolutional one with a leading ``before.``.

        Raises:
            AdderizeError: nothing remains, or an unknown key.
        """
        layers: Iterable[Layer] = self.layers
        if only is not None:
            layers = [layer for layer in self.layers if layer.kind == only]
            if not layers:
                kinds = ", ".join(sorted({layer.kind for layer in self.layers}))
                raise AdderizeError(f"no layer is of kind {only!r}; there are: {kinds}")
        if depth is not None:
            layers = _grouped(layers, depth)
        if sort is not None:
            view, _, key = sort.rpartition(".")
            if key not in SORT_KEYS or view not in ("", "before", "after"):
                raise AdderizeError(
                    f"cannot sort by {sort!r}; expected one of {', '.join(SORT_KEYS)}, "
                    "with or without a leading `before.`"
                )
            layers = sorted(
                layers, key=lambda layer: -self.costs(getattr(layer, view or "after"))[key]
            )
        return replace(self, layers=tuple(layers))

    def costs(self, operations: Operations) -> dict[str, float]:
        """Counts by kind, energy and latency, under the keys of the JSON form."""
        return {
            **operations.by_kind(),
            "energy_joule": self.energy.cost(operations),
            "latency_cycles": self.latency.cost(operations),
        }

    def to_dict(self) -> dict[str, Any]:
        """Exact counts; energy in joule and latency in cycles, for one example."""
        return {
            "model": self.model,
            "input_size": list(self.input_size),
            "before": self.costs(self.before),
            "after": self.costs(self.after),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "type": layer.type,
                    "output": list(layer.output),
                    "before": self.costs(layer.before),
                    "after": self.costs(layer.after),
                }
                for layer in self.layers
            ],
            "uncounted": [
                {"operator": item.operator, "layer": item.layer, "calls": item.calls}
                for item in self.uncounted
            ],
            "energy": {"table": self.energy.name, "source": self.energy.source},
            "latency": {"table": self.latency.name, "source": self.latency.source},
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_csv(self) -> str:
        """One line a layer, then the totals; exact counts."""
        from adderize.counting.report import csv_text

        return csv_text(self)

    def to_markdown(self) -> str:
        from adderize.counting.report import markdown

        return markdown(self)

    def table(self) -> str:
        """For reading: layers, totals with their ratios, and what the totals leave out."""
        from adderize.counting.report import table

        return table(self)

    def plot(self, path: str | Path) -> None:
        """Multiplications and additions of every stage, before and after, as stacked bars.

        Args:
            path: the image file; its suffix names the format (png, svg, pdf).

        Raises:
            AdderizeError: matplotlib is not installed, or it cannot write such a file.
        """
        from adderize.counting.plot import plot

        plot(self, Path(path))

    def __str__(self) -> str:
        return self.table()


def sum_of(layers: Iterable[Layer], name: str) -> Layer:
    """One row for many layers: their common kind, or "mixed"."""
    layers = list(layers)
    kinds = {layer.kind for layer in layers}
    return Layer(
        name,
        kinds.pop() if len(kinds) == 1 else "mixed",
        "",
        (),
        sum((layer.before for layer in layers), FREE),
        sum((layer.after for layer in layers), FREE),
    )


def _grouped(layers: Iterable[Layer], depth: int) -> list[Layer]:
    if depth < 1:
        raise AdderizeError(f"depth is {depth}; expected 1 or more")
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    return [
        replace(rows[0], name=name) if len(rows) == 1 else sum_of(rows, name)
        for name, rows in groups.items()
    ]
