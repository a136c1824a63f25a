"""The tables of a report: cells as they are shown, and the values that they are sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from adderize.counting import OpBudget
from adderize.counting.quantities import joule, quantity
from adderize.counting.rows import Layer as Counted
from adderize.inspection import Inspection, Layer, Range
from adderize.inspection.findings import SATURATED
from adderize.quantize import QuantizationReport
from adderize.reporting.notices import LARGE_ERROR
from adderize.surgery import Plan
from adderize.tables import layer_text, shape_text


class Cell(NamedTuple):
    """What is shown, what it is sorted by, and a share from 0 to 1 that is drawn behind it."""

    text: str
    value: float | None = None
    share: float | None = None
    grave: bool = False


_NOTHING = Cell("-")


class Column(NamedTuple):
    """A title, whether the column holds numbers, and what is said of it below the table."""

    title: str
    numeric: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class PageTable:
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def _texts(*titles: str) -> list[Column]:
    return [Column(title) for title in titles]


def totals(budget: OpBudget) -> PageTable:
    """Sums over the network, of all that occurs."""
    rows = [
        [Cell(title), Cell(show(before), before), Cell(show(after), after), _ratio(before, after)]
        for title, before, after, show in budget.totals()
    ]
    numbers = [Column(title, True) for title in ("before", "after", "after / before")]
    return PageTable([Column("for one example"), *numbers], rows)


def _ratio(before: float, after: float) -> Cell:
    return Cell(f"{after / before:.4g}", after / before) if before else _NOTHING


_SHORT = {"multiplications": "mul", "additions": "add", "shifts": "shift", "xnors": "xnor"}


def operations(budget: OpBudget, parameters: Mapping[str, int]) -> PageTable:
    """A row for each layer that computes; parameters where the network has some."""
    counts = {
        f"{short} {view}": (view, kind)
        for kind, short in _SHORT.items()
        for view in ("before", "after")
        if getattr(budget.before + budget.after, kind)
    }
    rows = [
        [
            Cell(layer_text(row.name)),
            Cell(row.kind),
            Cell(shape_text(row.output)),
            *([_count(parameters.get(row.name, 0))] if parameters else []),
            *(_count(getattr(getattr(row, view), kind)) for view, kind in counts.values()),
            *_prices(budget, row),
        ]
        for row in budget.layers
        if row.arithmetic
    ]
    prices = ["energy before", "energy after", "cycles before", "cycles after"]
    columns = [
        Column("layer", meaning="(model) is what the network's own code computes between them"),
        *_texts("kind", "output"),
        *([Column("parameters", True)] if parameters else []),
        *(Column(title, True) for title in (*counts, *prices)),
    ]
    return PageTable(columns, rows)


def _count(number: int) -> Cell:
    return Cell(quantity(number) if number else _NOTHING.text, number)


def _prices(budget: OpBudget, row: Counted) -> list[Cell]:
    costs = [budget.costs(row, view) for view in ("before", "after")]
    return [
        Cell(show(cost[key]) if cost[key] else _NOTHING.text, cost[key])
        for key, show in (("energy_joule", joule), ("latency_cycles", quantity))
        for cost in costs
    ]


def planned(plan: Plan) -> PageTable:
    rows = [
        [
            Cell(layer_text(row.name)),
            Cell(row.kind),
            Cell(shape_text(row.shape)),
            Cell(row.decision.value),
            Cell(row.reason),
            Cell(row.norm),
        ]
        for row in plan.rows
    ]
    return PageTable(_texts("layer", "kind", "filters", "decision", "why", "norm"), rows)


def layers(
    inspection: Inspection, parameters: Mapping[str, int], *, settled: bool = True
) -> PageTable:
    """Ranges, deviations and saturation; without images only what filters tell.

    Args:
        settled: without it the share outside, which means nothing behind new norms, is left out.
    """
    measured = inspection.images > 0
    rows = [
        [
            Cell(layer_text(row.name)),
            Cell(row.kind),
            Cell(shape_text(row.shape)),
            _count(parameters.get(row.name, 0)),
            *_range(row.filters),
            _number(row.filter_std),
            *(_measured(row, settled) if measured else ()),
        ]
        for row in inspection.layers
    ]
    numbers = [*_PLAIN, *(_MEASURED if measured else ())]
    return PageTable([*_texts("layer", "kind", "filters"), *numbers], rows)


_PLAIN = (
    Column("parameters", True),
    Column("filter min", True),
    Column("filter max", True),
    Column("filter std", True, "standard deviation of the filter values"),
)
_MEASURED = (
    Column("input min", True, "like the largest one, with the zeros of a padding"),
    Column("input max", True),
    Column("outside", True, "share of the filter values outside the range of the inputs"),
    Column("output mean", True, "like the standard deviation, before the norm"),
    Column("output std", True),
    Column("correlation", True, "of two output channels, the mean over all pairs"),
)


def _measured(row: Layer, settled: bool) -> list[Cell]:
    outside = _NOTHING
    if row.outside is not None and settled:
        outside = Cell(f"{row.outside:.1%}", row.outside, row.outside, row.outside >= SATURATED)
    return [
        *(_range(row.inputs) if row.inputs is not None else [_NOTHING, _NOTHING]),
        outside,
        *map(_number, (row.output_mean, row.output_std, row.correlation)),
    ]


def _range(values: Range) -> list[Cell]:
    return [_number(values.min), _number(values.max)]


def _number(value: float | None) -> Cell:
    if value is None:
        return _NOTHING
    return Cell(f"{value:.4g}", value if math.isfinite(value) else None)


def norms(inspection: Inspection) -> PageTable:
    """The norm after each layer, whose state the layer's training depends on."""
    rows = []
    for row in inspection.layers:
        norm = row.norm
        if norm is None:
            rows.append([Cell(layer_text(row.name)), Cell("none"), *[_NOTHING] * 8])
            continue
        state = "frozen" if norm.frozen else "trains"
        statistics = _NOTHING.text if not norm.running else "updated" if norm.updated else "new"
        rows.append(
            [
                Cell(layer_text(row.name)),
                Cell(layer_text(norm.name)),
                Cell(norm.kind),
                Cell(state),
                Cell(statistics),
                Cell(_NOTHING.text if norm.batches is None else str(norm.batches), norm.batches),
                _number(norm.smallest_gamma),
                _number(norm.largest_gamma),
                _number(norm.mean_shift),
                _number(norm.variance_ratio),
            ]
        )
    return PageTable(_NORM_COLUMNS, rows)


_NORM_COLUMNS = (
    *_texts("layer", "norm", "kind", "state"),
    Column("statistics", meaning="the running ones, new until a training has updated them"),
    Column("batches", True, "that they were updated with"),
    Column("least gamma", True, "factor of a channel, by absolute value"),
    Column("largest gamma", True),
    Column("mean shift", True, "of the images from the running means, in running deviations"),
    Column("variance ratio", True, "of the images to the running ones; 1 where they agree"),
)


def quantized(report: QuantizationReport) -> PageTable:
    rows = []
    for row in report.layers:
        error = _NOTHING
        if row.error is not None:
            share = min(row.error, 1.0)
            error = Cell(f"{row.error:.2%}", row.error, share, row.error >= LARGE_ERROR)
        rows.append(
            [
                Cell(layer_text(row.layer)),
                error,
                _number(row.low),
                _number(row.high),
                Cell(str(row.zero_point), row.zero_point),
                Cell(f"{row.clamped:.1%}", row.clamped, row.clamped),
                Cell(row.output),
                Cell(", ".join(row.fused) or _NOTHING.text),
            ]
        )
    return PageTable(_QUANTIZED_COLUMNS, rows)


_QUANTIZED_COLUMNS = (
    Column("layer"),
    Column("error", True),
    Column("input low", True, "with the high end, what the input's bytes cover"),
    Column("input high", True),
    Column("zero", True, "the byte that stands for 0"),
    Column("clamped", True, "share of the filter values outside, clamped without loss"),
    Column("output", meaning="bytes, or float32 for what has no form in bytes"),
    Column("fused", meaning="what the layer's kernel computes along"),
)
