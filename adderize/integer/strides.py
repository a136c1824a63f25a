"""Places in memory as nests of loops."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]


class Loops(NamedTuple):
    """A nest of loops, the last one fastest.

    Attributes:
        sizes: of the loops.
        strides: (loops, columns), what a turn of each loop adds.
    """

    sizes: tuple[int, ...]
    strides: Integers


def as_loops(places: Integers) -> Loops | None:
    """The loops that visit places one after the other, if there are any.

    Args:
        places: (count, columns), several places that move together; where the first ones are does
            not matter.
    """
    sizes: list[int] = []
    strides: list[Integers] = []
    while len(places) > 1:
        stride = places[1] - places[0]
        breaks = (np.diff(places, axis=0) != stride).any(1)
        run = int(breaks.argmax()) + 1 if breaks.any() else len(places)
        if len(places) % run:
            return None
        lines = places.reshape(-1, run, places.shape[1])
        if (lines != lines[:, :1] + np.arange(run)[:, None] * stride).any():
            return None
        sizes.append(run)
        strides.append(stride)
        places = lines[:, 0]
    return Loops(
        tuple(reversed(sizes)), np.array(strides[::-1], np.int64).reshape(-1, places.shape[1])
    )
