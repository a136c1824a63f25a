"""Where the values of a program's slots lie in memory, and how they get from place to place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from adderize.integer.program import BYTES_OF
from adderize.integer.strides import Integers, as_loops

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
    """Places that the C function of moves visits: a nest of five loops, the last one fastest.

    Attributes:
        sizes: of the loops.
        ends: (loops, columns), what a turn of each loop adds once the inner ones are through.
    """

    sizes: tuple[int, ...]
    ends: Integers


def as_lines(places: Integers) -> Lines | None:
    """The nest that visits places one after the other, if there is one.

    Args:
        places: see :func:`as_loops`.
    """
    loops = as_loops(places)
    missing = MOST_DIMENSIONS if loops is None else MOST_DIMENSIONS - len(loops.sizes)
    if loops is None or missing < 0:
        return None
    sizes = (*[1] * missing, *loops.sizes)
    strides = np.concatenate([np.zeros((missing, places.shape[1]), np.int64), loops.strides])
    ends = strides.copy()
    ends[:-1] -= strides[1:] * np.array(sizes[1:])[:, None]
    return Lines(sizes, ends)
