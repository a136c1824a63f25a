"""A budget as text: a table for reading, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from adderize.counting.budget import Layer, OpBudget, sum_of
from adderize.counting.formulas import KINDS

_HEADER = ["layer", "kind", "output"]
_COLUMNS = {
    "mul before": ("before", "multiplications"),
    "add before": ("before", "additions"),
    "mul after": ("after", "multiplications"),
    "add after": ("after", "additions"),
}
_XNOR_COLUMN = {"xnor after": ("after", "xnors")}


def table(budget: OpBudget) -> str:
    rows = [[*_HEADER, *_columns(budget)], *_rows(budget)]
    summary = [["", "before", "after", "after / before"], *_summary(budget)]
    lines = [
        f"{budget.model}, input {_shape(budget.input_size)}, operations for one example",
        "",
        *aligned(rows, texts=3),
        "",
        *aligned(summary, texts=1),
        "",
        *_notes(budget),
    ]
    return "\n".join(lines)


def markdown(budget: OpBudget) -> str:
    columns = list(_columns(budget))
    rows = [[*_HEADER, *columns], ["---"] * len(_HEADER) + ["---:"] * len(columns)]
    rows += _rows(budget)
    summary = [["", "before", "after", "after / before"], ["---"] + ["---:"] * 3]
    lines = [
        f"**{budget.model}**, input {_shape(budget.input_size)}, operations for one example",
        "",
        *markdown_lines(summary + _summary(budget)),
        "",
        *markdown_lines(rows),
        "",
        *(f"- {note}" for note in _notes(budget)),
    ]
    return "\n".join(lines)


def markdown_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def csv_text(budget: OpBudget) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = (*KINDS, "energy_joule", "latency_cycles")
    views = [f"{view}.{key}" for view in ("before", "after") for key in keys]
    writer.writerow(["layer", "kind", "type", "output", *views])
    total = Layer("(network)", "", "", (), budget.before, budget.after)
    for layer in (*budget.layers, total):
        costs = [budget.costs(view) for view in (layer.before, layer.after)]
        values = [cost[key] for cost in costs for key in keys]
        writer.writerow(
            [layer.name or "(model)", layer.kind, layer.type, _shape(layer.output), *values]
        )
    return text.getvalue().rstrip("\n")


def quantity(value: float) -> str:
    """Four significant digits with a prefix: 1.814G, 416.5K, 84."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit * 0.99995:
            return f"{value / limit:.4g}{prefix}"
    return f"{value:.4g}"


def _joule(value: float) -> str:
    for limit, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if value >= limit * 0.99995:
            return f"{value / limit:.4g} {prefix}J"
    return f"{value / 1e-12:.4g} pJ"


def _cycles(value: float) -> str:
    return f"{quantity(value)} cycles"


_SHOWN_AS: dict[str, Callable[[float], str]] = {
    "energy_joule": _joule,
    "latency_cycles": _cycles,
}


def _columns(budget: OpBudget) -> dict[str, tuple[str, str]]:
    return _COLUMNS | (_XNOR_COLUMN if budget.after.xnors else {})


def _cells(layer: Layer, columns: Iterable[tuple[str, str]]) -> list[str]:
    counts = [getattr(getattr(layer, view), kind) for view, kind in columns]
    return [
        layer.name or "(model)",
        layer.kind,
        _shape(layer.output),
        *(quantity(count) if count else "-" for count in counts),
    ]


def _rows(budget: OpBudget) -> list[list[str]]:
    """The layers, and their sum where they are not the whole network."""
    columns = _columns(budget).values()
    rows = [_cells(layer, columns) for layer in _shown(budget)]
    total = sum_of(budget.layers, "(these rows)")
    partial = total.before != budget.before or total.after != budget.after
    return [*rows, _cells(total, columns)] if partial else rows


def _shown(budget: OpBudget) -> list[Layer]:
    return [layer for layer in budget.layers if layer.before.flops or layer.after.flops]


def _summary(budget: OpBudget) -> list[list[str]]:
    before, after = budget.costs(budget.before), budget.costs(budget.after)
    rows = []
    for key in before:
        if not before[key] and not after[key]:
            continue
        show = _SHOWN_AS.get(key, quantity)
        ratio = f"{after[key] / before[key]:.4g}" if before[key] else "-"
        rows.append([key.split("_")[0], show(before[key]), show(after[key]), ratio])
    return rows


def _notes(budget: OpBudget) -> list[str]:
    occurring = budget.before + budget.after
    notes = []
    hidden = len(budget.layers) - len(_shown(budget))
    if hidden:
        notes.append(f"{hidden} rows without multiplications and additions are not shown")
    for what, costs in (("energy", budget.energy), ("latency", budget.latency)):
        notes.append(f"{what}: {costs.name} ({costs.source}){_without(costs.unpriced(occurring))}")
    for item in budget.uncounted:
        layer = item.layer or "the model itself"
        notes.append(f"not counted: {item.operator} in {layer}, {item.calls} calls")
    return notes


def _without(kinds: Sequence[str]) -> str:
    return f"; without {', '.join(kinds)}" if kinds else ""


def _shape(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def aligned(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Columns padded to their widest cell: the first `texts` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
