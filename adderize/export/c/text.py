"""C as text: comments, arrays, initialisers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from adderize.export.c.steps import Fields

WIDTH = 100
# A space at which no line breaks.
_TIED = "\N{NO-BREAK SPACE}"
_TYPES = {"uint8": "uint8_t", "uint32": "uint32_t", "int32": "int32_t"}


def comment(text: str) -> str:
    """Of one line or several."""
    lines = textwrap.wrap(text, WIDTH - 6)
    return "/* " + "\n * ".join(lines) + " */"


def identifiers(names: Iterable[str]) -> tuple[str, ...]:
    """Names of layers as names in C, each different from the others."""
    result: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = plain if re.match("[A-Za-z]", plain) else f"layer_{plain}"
        numbered = (f"{plain}_{count}" for count in range(2, len(result) + 3))
        result.append(next(n for n in (plain, *numbered) if n not in result))
    return tuple(result)


def declaration(name: str, values: Any) -> str:
    """Of a constant array, without what it holds."""
    return f"const {_TYPES[values.dtype.name]} {name}[{values.size}]"


def number(value: int) -> str:
    """In C the smallest int32_t is the negative of a number that is too large for one."""
    return "INT32_MIN" if value == -(2**31) else str(value)


def definition(name: str, values: Any) -> str:
    """A constant array."""
    numbers = ", ".join(map(number, values.reshape(-1).tolist()))
    body = textwrap.fill(numbers, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"{declaration(name, values)} = {{\n{body}\n}};"


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
