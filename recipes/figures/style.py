"""How the figures look, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from adderize.errors import writing

# Okabe and Ito's colours, which colour-blind people can tell apart; two more that fit in.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
CNN, ADDER = BLUE, RED
TEN_CLASSES = (BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK, "#BBBBBB", "#7A3B00")

# Inches; with 110 dots an inch about as wide as a README.
WIDTH = 8.0
_DPI = 110
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
    paths = [folder / f"{name}{suffix}" for suffix in (".png", ".svg", ".md")]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=_DPI, pil_kwargs={"optimize": True})
        figure.set_layout_engine("none")  # it is laid out, which takes most of the time
        figure.savefig(paths[1], dpi=_DPI, metadata={"Date": None})
        paths[2].write_text(numbers + "\n")
    return paths
