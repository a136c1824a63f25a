"""Where the values of a program's slots lie in memory, and how they get from place to place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from adderize.integer.program import BYTES_OF

Integers = np.ndarray[Any, np.dtype[np.int64]]
Dtype = Literal["uint8", "int32"]
MOST_DIMENSIONS = 5


@dataclass(frozen=True)
class View:
    """The values of a slot, one behind the other in a buffer.

    Attributes:
        buffer: its number.
        offset: of the first value, in values.
        dtype: of the values.
        order: int64 (numel,), for each place the flat index, in the slot's shape, of the value
            that lies there.
    """

    buffer: int
    offset: int
    dtype: Dtype
    order: Integers

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        return self.size * BYTES_OF[self.dtype]

    @property
    def places(self) -> Integers:
        """For each flat index of the slot the place of its value, counted from the offset."""
        return np.argsort(self.order)


def plain(count: int) -> Integers:
    """Values in the order of the slot's shape."""
    return np.arange(count, dtype=np.int64)


def channels_last(shape: Sequence[int]) -> Integers:
    """Pixel by pixel, a pixel's channels side by side; one dimension stays as it is."""
    indices = plain(math.prod(shape)).reshape(shape)
    return np.moveaxis(indices, 0, -1).reshape(-1)


class Lines(NamedTuple):
    """Places that lie in a regular grid: a nest of loops, the last one fastest.

    Attributes:
        sizes: of the loops.
        steps: (loops, columns), what a turn of each loop adds.
    """

    sizes: tuple[int, ...]
    steps: Integers


def as_lines(places: Integers) -> Lines | None:
    """A nest of at most five loops that visits places one after the other, if there is one.

    Args:
        places: (count, columns), several places that move together; the first ones are 0.
    """
    sizes: list[int] = []
    steps: list[Integers] = []
    while len(places) > 1:
        if len(sizes) == MOST_DIMENSIONS:
            return None
        step = places[1] - places[0]
        line = places[0] + np.arange(len(places))[:, None] * step
        differs = (places != line).any(1)
        run = int(differs.argmax()) if differs.any() else len(places)
        if len(places) % run:
            return None
        lines = places.reshape(-1, run, places.shape[1])
        if (lines != lines[:, :1] + np.arange(run)[:, None] * step).any():
            return None
        sizes.append(run)
        steps.append(step)
        places = lines[:, 0]
    missing = MOST_DIMENSIONS - len(sizes)
    none = np.zeros((missing, places.shape[1]), np.int64)
    steps_array = np.array(steps[::-1], np.int64).reshape(-1, places.shape[1])
    return Lines((*[1] * missing, *sizes[::-1]), np.concatenate([none, steps_array]))


def line_ends(lines: Lines) -> Integers:
    """The steps as C takes them: what follows the end of each inner loop, of one value last."""
    ends = lines.steps.copy()
    for loop in range(MOST_DIMENSIONS - 1):
        ends[loop] -= lines.steps[loop + 1] * lines.sizes[loop + 1]
    return ends
