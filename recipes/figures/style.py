"""How the figures look, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from adderize.errors import writing
from adderize.whole_files import replaced_file, write_whole

# Okabe and Ito's colours, which colour-blind people can tell apart; two more that fit in.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
CNN, ADDER = BLUE, RED
TEN_CLASSES = (BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK, "#BBBBBB", "#7A3B00")

# Inches; with 110 dots an inch about as wide as a README.
WIDTH = 8.0
_DPI = 110
# And their options: the same bytes for the same figure.
_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"optimize": True}},
    "svg": {"metadata": {"Date": None}},
}
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "adderize",
}


def styled() -> Any:
    """The context that figures are drawn in."""
    return matplotlib.rc_context(_STYLE)


def save(figure: Figure, numbers: str, folder: Path, name: str) -> list[Path]:
    """NAME.png, NAME.svg and NAME.md; the same bytes for the same figure.

    Raises:
        AdderizeError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in (*_FORMATS, "md")]
    for path, (form, options) in zip(paths, _FORMATS.items(), strict=False):
        with replaced_file(path) as unfinished:
            figure.savefig(unfinished, format=form, dpi=_DPI, **options)
        figure.set_layout_engine("none")  # laid out once, which takes most of the time
    write_whole(paths[-1], numbers + "\n")
    return paths
