"""What a network computes, layer by layer, as a convolutional and as an adder network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from adderize.arguments import own_path
from adderize.counting.costs import CostTable
from adderize.counting.plot import plot
from adderize.counting.quantities import cycles, joule, quantity
from adderize.counting.rows import Layer, Uncounted, Views, grouped, of_kind, sum_of
from adderize.errors import AdderizeError
from adderize.formulas import FREE, KINDS, Operations
from adderize.tables import (
    Report,
    Table,
    bullets,
    csv_text,
    layer_text,
    lines_text,
    markdown,
    shape_text,
)

SORT_KEYS = (*KINDS, "energy_joule", "latency_cycles")
_HEADER = ["layer", "kind", "output"]
_COLUMNS = {
    "mul before": ("before", "multiplications"),
    "add before": ("before", "additions"),
    "mul after": ("after", "multiplications"),
    "add after": ("after", "additions"),
}
# Only where there are any.
_RARE_COLUMNS = {"shift after": ("after", "shifts"), "xnor after": ("after", "xnors")}
_SHOWN_AS: dict[str, Callable[[float], str]] = {"energy_joule": joule, "latency_cycles": cycles}


class Total(NamedTuple):
    """A kind of operations or a cost of a network, before and after, and how it is shown."""

    title: str
    before: float
    after: float
    show: Callable[[float], str]


@dataclass(frozen=True)
class OpBudget(Report):
    """Operations for one example, before (convolutions) and after (adders).

    ``print`` shows a table for reading: layers, totals with their ratios, and what the totals leave
    out.

    Attributes:
        model: class name of the model.
        input_size: of one example, without the batch.
        total: of the whole network, whatever rows are selected.
        layers: in order of execution.
        uncounted: what the totals leave out.
        energy: the tables that energies are computed with, by the format of the numbers.
        latency: the table that latencies are computed with.
    """

    model: str
    input_size: tuple[int, ...]
    total: Layer
    layers: tuple[Layer, ...]
    uncounted: tuple[Uncounted, ...]
    energy: Mapping[str, CostTable]
    latency: CostTable

    @property
    def before(self) -> Operations:
        return self.total.before

    @property
    def after(self) -> Operations:
        return self.total.after

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
            layers = of_kind(layers, only)
        if depth is not None:
            layers = grouped(layers, depth)
        if sort is not None:
            layers = self._sorted(layers, sort)
        return replace(self, layers=tuple(layers))

    def _sorted(self, layers: Iterable[Layer], key: str) -> list[Layer]:
        view, _, what = key.rpartition(".")
        if what not in SORT_KEYS or view not in ("", "before", "after"):
            raise AdderizeError(
                f"cannot sort by {key!r}; expected one of {', '.join(SORT_KEYS)}, "
                "with or without a leading `before.`"
            )
        return sorted(layers, key=lambda layer: -self.costs(layer, view or "after")[what])

    def costs(self, layer: Layer, view: str) -> dict[str, float]:
        """Counts by kind, energy and latency, under the keys of the JSON form.

        Args:
            layer: a row, or the total.
            view: "before" or "after".
        """
        energies = (
            self.energy[dtype].cost(getattr(views, view)) for dtype, views in layer.by_dtype.items()
        )
        operations: Operations = getattr(layer, view)
        return {
            **operations.by_kind(),
            "energy_joule": math.fsum(energies),
            "latency_cycles": self.latency.cost(operations),
        }

    def energy_name(self) -> str:
        """Of the tables of energy that apply to this network."""
        return " and ".join(table.name for table, _ in self._energies())

    def _energies(self) -> list[tuple[CostTable, Operations]]:
        """The tables of energy that apply, and the operations that each of them prices."""
        priced: dict[str, tuple[CostTable, Operations]] = {}
        for dtype, views in (self.total.by_dtype or {"float32": Views()}).items():
            table = self.energy[dtype]
            _, operations = priced.get(table.name, (table, FREE))
            priced[table.name] = table, operations + views.before + views.after
        return [priced[name] for name in sorted(priced)]

    def to_dict(self) -> dict[str, Any]:
        """Exact counts; energy in joule and latency in cycles, for one example."""
        return {
            "model": self.model,
            "input_size": list(self.input_size),
            **self._both_costs(self.total),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "type": layer.type,
                    "output": list(layer.output),
                    **self._both_costs(layer),
                }
                for layer in self.layers
            ],
            "uncounted": [asdict(item) for item in self.uncounted],
            "energy": _described(self._energies()),
            "latency": _described([(self.latency, self.before + self.after)]),
        }

    def _both_costs(self, layer: Layer) -> dict[str, dict[str, float]]:
        return {view: self.costs(layer, view) for view in ("before", "after")}

    def to_csv(self) -> str:
        """One line a layer, then the totals; exact counts."""
        views = [f"{view}.{key}" for view in ("before", "after") for key in SORT_KEYS]
        total = replace(self.total, name="(network)", kind="")
        rows = []
        for layer in (*self.layers, total):
            costs = [cost for view in self._both_costs(layer).values() for cost in view.values()]
            name = layer_text(layer.name)
            rows.append([name, layer.kind, layer.type, shape_text(layer.output), *costs])
        return csv_text(["layer", "kind", "type", "output", *views], rows)

    def to_markdown(self) -> str:
        title = f"**{markdown(self.model)}**, {self._measure()}"
        tables = self._summary().markdown(), self._layers().markdown()
        return "\n\n".join([title, *tables, bullets(self.notes())])

    def __str__(self) -> str:
        title = f"{self.model}, {self._measure()}"
        tables = self._layers().text(), self._summary().text()
        return "\n\n".join([title, *tables, lines_text(self.notes())])

    def plot(self, path: str | Path) -> None:
        """Multiplications, additions, shifts and XNORs of every stage, before and after, as
        stacked bars.

        Args:
            path: the image file; its suffix names the format (png, svg, pdf).

        Raises:
            AdderizeError: matplotlib is not installed, or it cannot write such a file.
        """
        plot(replace(self.total, name=self.model), self.layers, own_path(path))

    def _measure(self) -> str:
        return f"input {shape_text(self.input_size)}, operations for one example"

    def _layers(self) -> Table:
        """The layers, and their sum where they are not the whole network."""
        counts = self.after.by_kind()
        rare = {title: column for title, column in _RARE_COLUMNS.items() if counts[column[1]]}
        columns = _COLUMNS | rare
        rows = [_cells(layer, columns.values()) for layer in self.layers if layer.arithmetic]
        total = sum_of(self.layers, "(these rows)")
        if (total.before, total.after) != (self.before, self.after):
            rows.append(_cells(total, columns.values()))
        return Table([*_HEADER, *columns], rows, texts=3)

    def _summary(self) -> Table:
        rows = []
        for title, before, after, show in self.totals():
            ratio = f"{after / before:.4g}" if before else "-"
            rows.append([title, show(before), show(after), ratio])
        return Table(["", "before", "after", "after / before"], rows, texts=1)

    def totals(self) -> list[Total]:
        """What occurs, summed over the network."""
        before, after = self._both_costs(self.total).values()
        return [
            Total(key.split("_")[0], before[key], after[key], _SHOWN_AS.get(key, quantity))
            for key in before
            if before[key] or after[key]
        ]

    def notes(self) -> list[str]:
        """Where the costs come from, what they leave out, and what no table shows."""
        notes = []
        hidden = sum(not layer.arithmetic for layer in self.layers)
        if hidden:
            notes.append(f"not shown: rows without multiplications and additions ({hidden})")
        priced = [("energy", *energy) for energy in self._energies()]
        for what, table, operations in (
            *priced,
            ("latency", self.latency, self.before + self.after),
        ):
            unpriced = table.unpriced(operations)
            without = f"; without {', '.join(unpriced)}" if unpriced else ""
            notes.append(f"{what}: {table.name} ({table.source}){without}")
            for kind, source in table.other_sources(operations).items():
                notes.append(f"{what} of {kind}: {source}")
        return notes + [f"not counted: {item}" for item in self.uncounted]


def _described(priced: Iterable[tuple[CostTable, Operations]]) -> dict[str, str]:
    """Names and sources of tables, as the JSON form has them."""
    described: dict[str, list[str]] = {"table": [], "source": []}
    for table, operations in priced:
        others = table.other_sources(operations)
        sources = {f"source_of_{kind}": source for kind, source in others.items()}
        for key, text in {"table": table.name, "source": table.source, **sources}.items():
            if text not in described.setdefault(key, []):
                described[key].append(text)
    return {key: "; ".join(texts) for key, texts in described.items()}


def _cells(layer: Layer, columns: Iterable[tuple[str, str]]) -> Sequence[str]:
    counts = [getattr(getattr(layer, view), kind) for view, kind in columns]
    return [
        layer_text(layer.name),
        layer.kind,
        shape_text(layer.output),
        *(quantity(count) if count else "-" for count in counts),
    ]
