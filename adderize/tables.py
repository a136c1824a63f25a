"""Results as text: tables for reading, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Format = Literal["table", "json", "csv", "md"]
FORMATS: tuple[Format, ...] = get_args(Format)
_LONGEST_NAME = 34
# Underscores within a word, as names have them, are no markup.
_MARKUP = re.compile(r"[\\*|\[\]]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Attributes:
        texts: how many of the first columns are aligned to the left; the others hold numbers and
            are aligned to the right. None: all are texts.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int | None = None

    def text(self) -> str:
        """Columns that are padded to their widest cell."""
        lines = [[visible(cell) for cell in line] for line in (self.header, *self.rows)]
        columns = list(zip(*lines, strict=True))
        texts = len(columns) if self.texts is None else self.texts
        padded = []
        for i, column in enumerate(columns):
            width = max(map(len, column))
            align = str.ljust if i < texts else str.rjust
            padded.append([align(cell, width) for cell in column])
        return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))

    def markdown(self) -> str:
        texts = len(self.header) if self.texts is None else self.texts
        rule = ["---"] * texts + ["---:"] * (len(self.header) - texts)
        escaped = [[markdown(cell) for cell in row] for row in (self.header, *self.rows)]
        lines = [escaped[0], rule, *escaped[1:]]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Report(ABC):
    """A result that is printed as a table and has machine-readable forms."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def to_csv(self) -> str: ...

    @abstractmethod
    def to_markdown(self) -> str: ...

    @abstractmethod
    def __str__(self) -> str: ...

    def to_json(self) -> str:
        return json_text(self.to_dict())

    def render(self, form: Format) -> str:
        """The form that a command's ``--format`` names, without a line break at its end."""
        forms = {
            "table": self.__str__,
            "json": self.to_json,
            "csv": self.to_csv,
            "md": self.to_markdown,
        }
        return forms[form]()


def shape_text(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def layer_text(name: str) -> str:
    """A layer's name; the model itself has an empty one."""
    return name or "(model)"


def visible(text: str) -> str:
    """The text on one line, with line breaks and other control characters as ``\\n`` and so on."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(name: str) -> str:
    """A layer's name for a figure: a long one keeps its end, which tells more."""
    text = visible(layer_text(name))
    return text if len(text) <= _LONGEST_NAME else "…" + text[1 - _LONGEST_NAME :]


def markdown(text: str) -> str:
    """The text as Markdown that shows it as it is, in tables too; code in backticks stays code."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(visible(text), quote=False))


def lines_text(lines: Iterable[str]) -> str:
    """One a line."""
    return "\n".join(map(visible, lines))


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {markdown(line)}" for line in lines)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Exact values; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def json_text(content: object) -> str:
    """Indented JSON that every parser reads: :func:`plain` values."""
    return json.dumps(plain(content), indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """Named tuples become dictionaries, NaN and infinity None, for JSON has none of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
