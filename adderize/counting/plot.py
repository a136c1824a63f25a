"""A budget as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adderize.counting.quantities import quantity
from adderize.counting.rows import Layer, grouped, sum_of
from adderize.errors import AdderizeError

_MULTIPLICATIONS, _ADDITIONS = "#c44e52", "#4c72b0"
_ENOUGH_STAGES = 4
_SMALL = 1 / 500


def plot(total: Layer, layers: Sequence[Layer], path: Path) -> None:
    """Stacked bars of multiplications and additions per stage, before and after."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AdderizeError(
            "plots need matplotlib: install it with pip install 'adderize[plot]'"
        ) from error
    stages = _stages(total, layers)
    figure = Figure(figsize=(max(6.4, 0.6 * len(stages) + 2), 4.4), layout="constrained")
    axes = figure.add_subplot()
    for offset, view, hatch in ((-0.21, "before", ""), (0.21, "after", "//")):
        places = [i + offset for i in range(len(stages))]
        counts = [getattr(stage, view) for stage in stages]
        multiplications = [count.multiplications for count in counts]
        style: dict[str, Any] = {"width": 0.38, "hatch": hatch, "edgecolor": "white"}
        axes.bar(places, multiplications, color=_MULTIPLICATIONS, **style)
        additions = [count.additions for count in counts]
        axes.bar(places, additions, bottom=multiplications, color=_ADDITIONS, **style)
    axes.set_xticks(range(len(stages)), [stage.name for stage in stages])
    if len(stages) > 8:
        axes.tick_params(axis="x", rotation=60)
    axes.yaxis.set_major_formatter(lambda value, position: quantity(value))
    axes.set_ylabel("operations for one example")
    axes.set_title(
        f"{total.name}: {quantity(total.before.multiplications)} multiplications before, "
        f"{quantity(total.after.multiplications)} after"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=_legend(), frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise AdderizeError(f"cannot write the plot {path}: {error}") from error


def _legend() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=_MULTIPLICATIONS, label="multiplications"),
        Patch(facecolor=_ADDITIONS, label="additions"),
        Patch(facecolor="lightgrey", label="before (left)"),
        Patch(facecolor="lightgrey", hatch="//", edgecolor="white", label="after (right)"),
    ]


def _stages(total: Layer, layers: Sequence[Layer]) -> list[Layer]:
    """The coarsest grouping with enough large groups; small ones are summed up as `other`."""
    large: list[Layer] = []
    small: list[Layer] = []
    for depth in (1, 2, 3):
        groups = grouped(layers, depth)
        large = [group for group in groups if group.flops > _SMALL * total.flops]
        small = [group for group in groups if group not in large]
        if len(large) >= _ENOUGH_STAGES:
            break
    return [*large, sum_of(small, "other")] if small else large
