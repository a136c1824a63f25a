"""The figures of a report."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adderize.counting import OpBudget
from adderize.counting.plot import in_rows
from adderize.counting.quantities import joule, quantity
from adderize.counting.rows import Layer, sum_of
from adderize.inspection.histograms import Histogram
from adderize.inspection.rows import Range
from adderize.reporting.svg import COLORS, figure, inline
from adderize.tables import shortened

_WIDTH, _ROW, _FRAME = 360, 15, 46
_SMALL = (200, 112)
_MOST_ROWS = 60
_WITH_FILTERS = ("adder", "binary", "convolution", "linear")
_KINDS = {
    "multiplications": COLORS["multiplication"],
    "additions": COLORS["addition"],
    "shifts": COLORS["shift"],
    "xnors": COLORS["filter"],
}
_BEFORE = 0.45


class Bar(NamedTuple):
    """Two stacks of values, one above the other."""

    name: str
    before: Sequence[float]
    after: Sequence[float]


def operations(budget: OpBudget) -> str:
    """Operations of each layer, before and after, by kind."""
    rows = charted(budget.layers)
    total = (budget.before + budget.after).by_kind()
    kinds = [kind for kind in _KINDS if total[kind]]
    bars = [
        Bar(
            row.name,
            [row.before.by_kind()[kind] for kind in kinds],
            [row.after.by_kind()[kind] for kind in kinds],
        )
        for row in rows
    ]
    colors = {kind: _KINDS[kind] for kind in kinds}
    return _paired(bars, colors, quantity, "Operations for one example, layer by layer")


def energy(budget: OpBudget) -> str:
    """Energy of each layer, before and after."""
    bars = [
        Bar(row.name, *([budget.costs(row, view)["energy_joule"]] for view in ("before", "after")))
        for row in charted(budget.layers)
    ]
    colors = {"energy": COLORS["addition"]}
    return _paired(bars, colors, joule, "Energy for one example, layer by layer")


def charted(layers: Sequence[Layer]) -> list[Layer]:
    """A row for each layer with filters, and one for all others; the smallest of many together."""
    own = [row for row in layers if row.kind in _WITH_FILTERS and row.arithmetic]
    others = [row for row in layers if row.kind not in _WITH_FILTERS and row.arithmetic]
    largest = sorted(own, key=lambda row: -row.arithmetic)[:_MOST_ROWS]
    rows = [row for row in own if row in largest]
    small = [row for row in own if row not in largest]
    if small:
        rows.append(sum_of(small, f"{len(small)} smaller layers"))
    return [*rows, sum_of(others, "norms and all else")] if others else rows


def shares(values: Mapping[str, float], limit: float, title: str, *, whole: bool = False) -> str:
    """A bar of percents for each layer; those at the limit or above stand out."""
    drawn = figure(_WIDTH, _FRAME + _ROW * len(values), layout="constrained")
    axes = drawn.add_subplot()
    grave, usual = COLORS["warning"], COLORS["addition"]
    places = range(len(values))
    colors = [grave if value >= limit else usual for value in values.values()]
    axes.barh(places, [100 * value for value in values.values()], height=0.7, color=colors)
    if whole:
        axes.set_xlim(0, 100)
    if whole or any(value >= limit for value in values.values()):
        axes.axvline(100 * limit, color=grave, linewidth=0.8, linestyle="--")
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g} %")
    _name_rows(axes, list(values))
    return _finished(drawn, title)


def histogram(
    name: str, filters: Histogram, inputs: Histogram | None, covered: Range | None
) -> str:
    """Filter values, and the inputs that they meet, each as high as its largest bin."""
    drawn = figure(*_SMALL)
    axes = drawn.add_axes((0.03, 0.17, 0.94, 0.8))
    low, high = filters.low, filters.high
    if covered is not None:
        low, high = min(low, covered.min), max(high, covered.max)
        axes.axvspan(covered.min, covered.max, color=COLORS["input"], alpha=0.15, linewidth=0)
    for values, color in ((filters, COLORS["filter"]), (inputs, COLORS["input"])):
        if values is not None:
            most = max(*values.counts, 1)
            width = (values.high - values.low) / len(values.counts)
            edges = [values.low + width * i for i in range(len(values.counts) + 1)]
            heights = [count / most for count in values.counts]
            axes.stairs(heights, edges, color=color, fill=True, alpha=0.35, linewidth=0)
            axes.stairs(heights, edges, color=color, linewidth=0.9)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(labelsize=8.5)
    return _finished(drawn, f"Histogram of the filters and inputs of {name}")


def _paired(
    bars: Sequence[Bar], colors: Mapping[str, str], show: Callable[[float], str], title: str
) -> str:
    drawn = figure(_WIDTH, _FRAME + 2 * _ROW * 0.75 * len(bars), layout="constrained")
    axes = drawn.add_subplot()
    for offset, opacity, view in ((-0.2, _BEFORE, "before"), (0.2, 1.0, "after")):
        places = [i + offset for i in range(len(bars))]
        stacks = [getattr(bar, view) for bar in bars]
        left = [0.0] * len(bars)
        for color, widths in zip(colors.values(), zip(*stacks, strict=True), strict=True):
            axes.barh(places, widths, left=left, height=0.38, color=color, alpha=opacity)
            left = [sum(pair) for pair in zip(left, widths, strict=True)]
    axes.xaxis.set_major_formatter(lambda value, position: show(value) if value else "0")
    axes.locator_params(axis="x", nbins=5)
    _name_rows(axes, [bar.name for bar in bars])
    handles, columns = _legend(colors)
    drawn.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8.5,
                 handlelength=1, columnspacing=1, borderpad=0)  # fmt: skip
    return _finished(drawn, title)


def _legend(colors: Mapping[str, str]) -> tuple[list[Any], int]:
    from matplotlib.patches import Patch

    several = colors.items() if len(colors) > 1 else ()
    kinds = [Patch(facecolor=color, label=kind) for kind, color in several]
    ink = COLORS["ink"]
    views = [
        Patch(facecolor=ink, alpha=_BEFORE, label="before (upper bar)"),
        Patch(facecolor=ink, label="after (lower)"),
    ]
    return in_rows(kinds, views)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=COLORS["rule"], linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["left", "bottom"]].set_visible(False)


def _finished(drawn: Any, title: str) -> str:
    return inline(drawn, html.escape(title))
