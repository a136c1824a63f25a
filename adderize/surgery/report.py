"""The plan of a conversion: one row a layer, as a table, JSON, CSV or Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What happens to one layer.

    Attributes:
        name: qualified name (the first one, where a layer is registered under several).
        kind: class name.
        shape: shape of the filters.
        decision: "convert", "keep", or "adder" for one that is an adder already.
        reason: why, in a few words.
        norm: the norm after it: a qualified name, "inserted" (will be), or "none"; empty for kept
            layers and for adders that are never called.
        method: how the layer's surroundings were found: "fx" (traced), "hooks" (a forward on the
            meta device) or "order" (of registration).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    decision: str
    reason: str
    norm: str = ""
    method: str = ""


@dataclass(frozen=True)
class Plan:
    """The rows in registration order, and the options they came from."""

    rows: tuple[Row, ...]
    options: dict[str, Any]

    @property
    def converted(self) -> list[str]:
        """Names of the layers to convert."""
        return [row.name for row in self.rows if row.decision == "convert"]

    @property
    def inserted(self) -> list[str]:
        """Names of the layers that get a batch norm of their own."""
        return [row.name for row in self.rows if row.norm == "inserted"]

    def to_dict(self) -> dict[str, Any]:
        rows = [{key: getattr(row, key) for key in _FIELDS} for row in self.rows]
        return {"options": dict(self.options), "layers": rows}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows(_cells(row) for row in self.rows)
        return text.getvalue().rstrip("\n")

    def to_markdown(self) -> str:
        lines = [_HEADER, ["---"] * len(_HEADER), *(_cells(row) for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        return "\n".join([*_aligned([_HEADER, *map(_cells, self.rows)]), "", self._summary()])

    def _summary(self) -> str:
        counts = dict.fromkeys(("convert", "keep", "adder"), 0)
        for row in self.rows:
            counts[row.decision] += 1
        text = f"{counts['convert']} to convert, {counts['keep']} kept"
        if counts["adder"]:
            text += f", {counts['adder']} already adders"
        return f"{text}; {len(self.inserted)} norms to insert"


_FIELDS = ["name", "kind", "shape", "decision", "reason", "norm", "method"]
_HEADER = ["layer", *_FIELDS[1:]]


def _cells(row: Row) -> list[str]:
    shape = "x".join(map(str, row.shape))
    return [
        row.name or "(root)", row.kind, shape, row.decision, row.reason, row.norm, row.method
    ]  # fmt: skip


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
