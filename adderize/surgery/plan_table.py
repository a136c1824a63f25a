"""The plan of a conversion: one row a layer, as a table, JSON, CSV or Markdown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from adderize.surgery.decisions import Decision, NormFix, Row
from adderize.tables import Report, Table, bullets, csv_text, layer_text, lines_text, shape_text


@dataclass(frozen=True)
class Plan(Report):
    """The rows in registration order, and the options they came from.

    Attributes:
        rows: one entry a layer.
        options: the arguments of :func:`adderize.plan`.
        remarks: what else there is to know before the conversion, as sentences.
    """

    rows: tuple[Row, ...]
    options: dict[str, Any]
    remarks: tuple[str, ...] = ()

    @property
    def converted(self) -> list[str]:
        """Names of the layers to convert."""
        return [row.name for row in self.rows if row.decision is Decision.CONVERT]

    @property
    def inserted(self) -> list[str]:
        """Names of the layers that will get a batch norm of their own."""
        return [row.name for row in self.rows if row.norm_fix is NormFix.INSERTED]

    def to_dict(self) -> dict[str, Any]:
        rows = [{key: getattr(row, key) for key in _FIELDS} for row in self.rows]
        return {"options": dict(self.options), "layers": rows, "remarks": list(self.remarks)}

    def to_csv(self) -> str:
        return csv_text(_HEADER, map(_cells, self.rows))

    def to_markdown(self) -> str:
        remarks = [bullets(self.remarks)] if self.remarks else []
        return "\n\n".join([self._table().markdown(), *remarks])

    def __str__(self) -> str:
        return "\n".join([self._table().text(), "", lines_text([self._summary(), *self.remarks])])

    def _table(self) -> Table:
        return Table(_HEADER, [_cells(row) for row in self.rows])

    def _summary(self) -> str:
        counts = Counter(row.decision for row in self.rows)
        text = f"{counts[Decision.CONVERT]} to convert, {counts[Decision.KEEP]} kept"
        for decision, words in _ALREADY.items():
            if counts[decision]:
                text += f", {counts[decision]} already {words}"
        text += f"; {len(self.inserted)} norms to insert"
        scale = self.options.get("scale")
        if scale is None or not self.converted:
            return text
        start = "rescaled to" if self.options["init"] == "rescale" else "drawn with"
        return f"{text}; filters {start} deviation {scale:g}"


_ALREADY = {Decision.ADDER: "adders", Decision.BINARY: "binary"}
_FIELDS = ["name", "kind", "shape", "decision", "reason", "norm", "method"]
_HEADER = ["layer", *_FIELDS[1:]]


def _cells(row: Row) -> list[str]:
    shape = shape_text(row.shape)
    return [
        layer_text(row.name), row.kind, shape, row.decision, row.reason, row.norm, row.method
    ]  # fmt: skip
