"""C as text: comments, arrays, initialisers."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from adderize.export.c.steps import Fields

WIDTH = 100
# A space at which no line breaks.
_TIED = "\N{NO-BREAK SPACE}"
_TYPES = {"uint8": "uint8_t", "uint32": "uint32_t", "int32": "int32_t"}


def comment(text: str) -> str:
    """Of one line or several; names of layers may hold what would end it."""
    text = text.replace("*/", "* /").replace("/*", "/ *")
    lines = textwrap.wrap(text, WIDTH - 6)
    return "/* " + "\n * ".join(lines) + " */"


def identifiers(layers: Iterable[tuple[str, Collection[str]]]) -> tuple[str, ...]:
    """Names of layers as names in C.

    Args:
        layers: names, each with the endings that make the names of its constants of it. All those
            are different from each other, too, and from the type adderize_windows.
    """
    result: list[str] = []
    taken = {"adderize_windows"}
    for layer, endings in layers:
        plain = re.sub(r"\W", "_", layer, flags=re.ASCII)
        plain = plain if re.match("[A-Za-z]", plain) else f"layer_{plain}"
        numbered = (f"{plain}_{count}" for count in itertools.count(2))
        for name in itertools.chain([plain], numbered):
            symbols = {name, *(name + ending for ending in endings)}
            if taken.isdisjoint(symbols):
                break
        result.append(name)
        taken |= symbols
    return tuple(result)


def declaration(name: str, values: Any) -> str:
    """Of a constant array, without what it holds."""
    return f"const {_TYPES[values.dtype.name]} {name}[{values.size}]"


def number(value: int) -> str:
    """In C the smallest int32_t is the negative of a number that is too large for one."""
    return "INT32_MIN" if value == -(2**31) else str(value)


def definition(name: str, values: Any) -> str:
    """A constant array. Not in textwrap's lines, which take six times as long."""
    widest = max(len(number(int(end))) for end in (values.min(), values.max()))
    count = (WIDTH - 1) // (widest + 2)
    flat = values.reshape(-1)
    rows = (flat[start : start + count] for start in range(0, flat.size, count))
    body = ",\n  ".join(", ".join(map(number, row.tolist())) for row in rows)
    return f"{declaration(name, values)} = {{\n  {body}\n}};"


def initialiser(fields: Fields, name: str) -> str:
    """Of a struct; fields that are zero or null are left out, as C allows."""
    parts = [_field(field, value, f"{name}_{field}") for field, value in fields.items()]
    return "{" + (", ".join(part for part in parts if part) or "0") + "}"


def _field(field: str, value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        text = initialiser(value, name)
    elif isinstance(value, tuple):
        text = "{" + ", ".join(str(int(entry)) for entry in value) + "}"
    elif isinstance(value, np.ndarray):
        text = name
    else:
        text = number(value) if value else ""
    return f".{field}{_TIED}={_TIED}{text}" if text else ""


def arrays(fields: Fields, name: str) -> dict[str, Any]:
    """The arrays of a struct and of those in it, by their names in C."""
    found: dict[str, Any] = {}
    for field, value in fields.items():
        if isinstance(value, Mapping):
            found |= arrays(value, f"{name}_{field}")
        elif isinstance(value, np.ndarray):
            found[f"{name}_{field}"] = value
    return found


def wrapped(text: str, indent: str = "") -> str:
    """A declaration or a call, over as many lines as it needs."""
    filled = textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_TIED, " ")
