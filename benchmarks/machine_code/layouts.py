"""Layouts of tensors in Triton's intermediate code (TTGIR): which thread holds which element.

Every layout is linear over bits: the coordinates of an element are the exclusive or of one basis
for each bit that is set in the numbers of the register, the lane and the warp that hold it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple

Vector = tuple[int, ...]


class Layout(NamedTuple):
    """The bases of each bit of a register's, a lane's and a warp's number."""

    register: list[Vector]
    lane: list[Vector]
    warp: list[Vector]

    def without(self, dim: int) -> Layout:
        """The layout of a tensor that lacks this dimension."""
        return Layout(
            *([base[:dim] + base[dim + 1 :] for base in bases] for bases in self),
        )


def combine(bases: Sequence[Vector], number: int, rank: int) -> Vector:
    """The exclusive or of the bases whose bits are set in the number."""
    total = (0,) * rank
    for bit, base in enumerate(bases):
        if number >> bit & 1:
            total = tuple(one ^ other for one, other in zip(total, base, strict=True))
    return total


def aliases(ttgir: str) -> dict[str, str]:
    """The names of layouts ("#blocked1"), and what they stand for."""
    return dict(re.findall(r"^(#\w+) = (#\S+<.*>)$", ttgir, re.MULTILINE))


def layout(encoding: str, shape: Sequence[int], names: dict[str, str]) -> Layout:
    """The layout of a tensor of this shape.

    Raises:
        ValueError: the encoding is none that these kernels have had.
    """
    encoding = names.get(encoding, encoding)
    kind = re.match(r"#\w+\.(\w+)<", encoding)
    if kind and kind[1] == "slice":
        found = re.match(r"#\w+\.slice<\{dim = (\d+), parent = (.*)\}>$", encoding)
        assert found, encoding
        dim = int(found[1])
        return layout(found[2], [*shape[:dim], 1, *shape[dim:]], names).without(dim)
    if kind and kind[1] == "linear":
        return Layout(*(_bases(encoding, name) for name in Layout._fields))
    if kind and kind[1] == "blocked":
        return _blocked(encoding, shape)
    raise ValueError(f"the layout {encoding} is unknown: blocked, slice or linear was expected")


def field(encoding: str, name: str) -> list[int]:
    """The integers of a field of an encoding: `name = [1, 2]` or `name = 1`."""
    found = re.search(rf"\b{name} = (\[[\d, ]*\]|\d+)", encoding)
    if found is None:
        raise ValueError(f"the layout {encoding} has no {name}")
    value = ast.literal_eval(found[1])
    return value if isinstance(value, list) else [value]


def _bases(encoding: str, name: str) -> list[Vector]:
    found = re.search(rf"\b{name} = (\[\]|\[\[.*?\]\])", encoding)
    assert found, encoding
    return [tuple(base) for base in ast.literal_eval(found[1])]


def _blocked(encoding: str, shape: Sequence[int]) -> Layout:
    rank, order = len(shape), field(encoding, "order")
    next_step = [1] * rank
    parts: list[list[Vector]] = []

    def units(sizes: Sequence[int]) -> list[Vector]:
        bases = []
        for dim in order:
            for _ in range(sizes[dim].bit_length() - 1):
                step = next_step[dim] if next_step[dim] < shape[dim] else 0
                bases.append(tuple(step * (at == dim) for at in range(rank)))
                next_step[dim] *= 2
        return bases

    for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"):
        parts.append(units(field(encoding, name)))
    parts[0] += units([max(size // step, 1) for size, step in zip(shape, next_step, strict=True)])
    return Layout(*parts)
