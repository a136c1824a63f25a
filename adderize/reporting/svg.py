"""Figures of matplotlib as parts of a page: they take its colours, and no name meets another."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adderize.errors import AdderizeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins for the page's colours, which follow its light or dark form.
COLORS = {
    name: f"#01010{number}"
    for number, name in enumerate(
        ("ink", "rule", "multiplication", "addition", "shift", "filter", "input", "warning")
    )
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adderize",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.edgecolor": COLORS["rule"],
    "axes.labelcolor": COLORS["ink"],
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["ink"],
    "ytick.color": COLORS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "ytick.major.size": 0,
    "xtick.major.size": 2,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}
_LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.S)
_STYLES = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.S)
_NAMESPACES = re.compile(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"')
_GROUPS = re.compile(r'<g id="[^"]*"')
_NAMES = re.compile(r'(\bid="|url\(#|href="#)')
_COLORS = re.compile("|".join(COLORS.values()))
_numbers = itertools.count()


@contextmanager
def drawing() -> Iterator[None]:
    """The style of a report's figures, whatever the user's own.

    Raises:
        AdderizeError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise AdderizeError(
            "the report's figures need matplotlib: install it with pip install 'adderize[report]'"
        ) from error
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        yield


def figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of so many points, which are CSS pixels where the page shows it unscaled."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), **options)


def inline(drawn: Figure, title: str) -> str:
    """An ``<svg>`` element for HTML.

    Args:
        title: what the figure shows, for those who do not see it; escaped by the caller.
    """
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None})
    svg = _STYLES.sub("", _LEFT_OUT.sub("", text.getvalue()))
    svg = _GROUPS.sub("<g", svg).replace("xlink:href", "href")
    head, mark, body = svg.partition(">")
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", _NAMESPACES.sub("", head))
    prefix = f"f{next(_numbers)}-"
    body = _NAMES.sub(rf"\g<1>{prefix}", body)
    names = {color: name for name, color in COLORS.items()}
    body = _COLORS.sub(lambda found: f"var(--{names[found[0]]})", body)
    label = f' role="img" aria-label="{title}"'
    return re.sub(r"\s*\n\s*", "\n", f"{head.strip()}{label}{mark}{body}").strip()
