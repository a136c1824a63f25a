"""The gradient modes: what stands in for the derivatives of -|x - F|, see `reference/floats.py`."""

from __future__ import annotations

from typing import NamedTuple

from adderize.arguments import check_choice


class Signs(NamedTuple):
    """Where a mode takes the true derivatives, the signs of the differences.

    Attributes:
        filters: sgn(x - F), else x - F.
        input: sgn(F - x), else clip(F - x, -1, 1).
    """

    filters: bool
    input: bool


SIGNS = {
    "full": Signs(filters=False, input=False),
    "sign": Signs(filters=True, input=True),
    "sign_input": Signs(filters=False, input=True),
}
GRADIENTS = tuple(SIGNS)


def check_gradient(gradient: object) -> None:
    """Raise AdderizeError for what is not the name of a mode."""
    check_choice("gradient", gradient, GRADIENTS)
