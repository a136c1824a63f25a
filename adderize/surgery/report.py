"""The plan of a conversion: one row a layer, as a table, JSON, CSV or Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adderize.tables import Report, Table, csv_text, shape_text


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
class Plan(Report):
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

    def to_csv(self) -> str:
        return csv_text(_HEADER, map(_cells, self.rows))

    def to_markdown(self) -> str:
        return self._table().markdown()

    def __str__(self) -> str:
        return f"{self._table().text()}\n\n{self._summary()}"

    def _table(self) -> Table:
        return Table(_HEADER, [_cells(row) for row in self.rows])

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
    shape = shape_text(row.shape)
    return [
        row.name or "(root)", row.kind, shape, row.decision, row.reason, row.norm, row.method
    ]  # fmt: skip
