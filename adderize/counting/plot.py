"""A budget as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adderize.counting.quantities import quantity
from adderize.counting.rows import Layer, grouped, sum_of
from adderize.errors import AdderizeError
from adderize.tables import shortened
from adderize.whole_files import replaced_file

_COLORS = {
    "multiplications": "#c44e52", "additions": "#4c72b0", "shifts": "#55a868", "xnors": "#8172b3"
}  # fmt: skip
_ENOUGH_STAGES = 4
_SMALL = 1 / 500
_WIDE = 12
_TURNED: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}


def plot(total: Layer, layers: Sequence[Layer], path: Path) -> None:
    """Stacked bars of multiplications, additions, shifts and XNORs per stage, before and after."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AdderizeError(
            "plots need matplotlib: install it with pip install 'adderize[plot]'"
        ) from error
    form, forms = path.suffix[1:].lower(), Figure().canvas.get_supported_filetypes()
    if form not in forms:
        raise AdderizeError(
            f"cannot write the plot {path}: its suffix names no format; expected one of "
            + ", ".join(f".{name}" for name in forms)
        )
    stages = _stages(total, layers)
    occurring = (total.before + total.after).by_kind()
    colors = {kind: color for kind, color in _COLORS.items() if occurring[kind]}
    names = [shortened(stage.name) for stage in stages]
    longest = max(map(len, names))
    turned = len(stages) > 8 or longest > _WIDE
    size = max(6.4, 0.6 * len(stages) + 2), 4.8 + turned * 0.07 * longest
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for offset, view, hatch in ((-0.21, "before", ""), (0.21, "after", "//")):
        places = [i + offset for i in range(len(stages))]
        counts = [getattr(stage, view) for stage in stages]
        style: dict[str, Any] = {"width": 0.38, "hatch": hatch, "edgecolor": "white"}
        bottom = [0] * len(stages)
        for kind, color in colors.items():
            heights = [getattr(count, kind) for count in counts]
            axes.bar(places, heights, bottom=bottom, color=color, **style)
            bottom = [sum(pair) for pair in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(stages)), names, parse_math=False, **(_TURNED if turned else {}))
    axes.yaxis.set_major_formatter(lambda value, position: quantity(value))
    axes.set_ylabel("operations for one example")
    axes.set_title(
        f"{shortened(total.name)}: {quantity(total.before.multiplications)} multiplications "
        f"before, {quantity(total.after.multiplications)} after",
        parse_math=False,
    )
    axes.spines[["top", "right"]].set_visible(False)
    handles, columns = _legend(colors)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    with replaced_file(path) as unfinished:
        figure.savefig(unfinished, format=form, dpi=150)


def _legend(colors: dict[str, str]) -> tuple[list[Any], int]:
    from matplotlib.patches import Patch

    kinds = [Patch(facecolor=color, label=kind) for kind, color in colors.items()]
    before = Patch(facecolor="lightgrey", label="before (left)")
    after = Patch(facecolor="lightgrey", hatch="//", edgecolor="white", label="after (right)")
    return in_rows(kinds, [before, after])


def in_rows(kinds: Sequence[Any], views: Sequence[Any]) -> tuple[list[Any], int]:
    """Entries of a legend column by column, as matplotlib fills it, and the number of columns:
    where there are more than four, the kinds have a row of their own."""
    if len(kinds) <= 2:
        return [*kinds, *views], len(kinds) + len(views)
    pairs = itertools.zip_longest(kinds, views)
    return [entry for pair in pairs for entry in pair if entry is not None], len(kinds)


def _stages(total: Layer, layers: Sequence[Layer]) -> list[Layer]:
    """The coarsest grouping with enough large groups; small ones are summed up as `other`."""
    large: list[Layer] = []
    small: list[Layer] = []
    for depth in (1, 2, 3):
        groups = grouped(layers, depth)
        large = [group for group in groups if group.arithmetic > _SMALL * total.arithmetic]
        small = [group for group in groups if group not in large]
        if len(large) >= _ENOUGH_STAGES:
            break
    return [*large, sum_of(small, "other")] if small else large
