"""What became of each scale of a network without multiplications."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from adderize.errors import AdderizeError
from adderize.tables import Report, Table, csv_text


@dataclass(frozen=True)
class LayerShifts:
    """One layer whose scales became sums of powers of two.

    Attributes:
        layer: qualified name in the new network.
        kind: class name.
        scales: how many numbers were rounded; 0 for means, whose scale follows from the image.
        terms: T, powers of two for each.
        worst_error: the largest relative error of one of them.
    """

    layer: str
    kind: str
    scales: int
    terms: int
    worst_error: float


@dataclass(frozen=True)
class ShiftReport(Report):
    """The layers in order of execution, and what still multiplies; prints as a table.

    Attributes:
        norm_terms, filter_terms: the options of the conversion.
        layers: one row for each layer with scales.
        remarks: the operations that stay as they are, and why (``strict=False``).
    """

    norm_terms: int
    filter_terms: int
    layers: tuple[LayerShifts, ...]
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> ShiftReport:
        """Raises AdderizeError where the content is damaged."""
        try:
            layers = tuple(LayerShifts(**row) for row in content["layers"])
            remarks = tuple(content["remarks"])
            return cls(content["norm_terms"], content["filter_terms"], layers, remarks)
        except (KeyError, TypeError) as error:
            raise AdderizeError(f"the report of the shifts is damaged: {error!r}") from error

    def to_csv(self) -> str:
        return csv_text(_HEADER, [list(asdict(row).values()) for row in self.layers])

    def to_markdown(self) -> str:
        return self._table().markdown()

    def __str__(self) -> str:
        multiplies = f"{len(self.remarks)} operations multiply" if self.remarks else "no product"
        summary = (
            f"{len(self.layers)} layers of shifts and additions, {self.norm_terms} terms a norm's "
            f"scale and {self.filter_terms} a weight; {multiplies}"
        )
        return "\n".join([self._table().text(), "", summary, *self.remarks])

    def _table(self) -> Table:
        rows = [
            [row.layer, row.kind, str(row.scales), str(row.terms), f"{row.worst_error:.2%}"]
            for row in self.layers
        ]
        return Table(_HEADER, rows, texts=2)


_HEADER = ["layer", "kind", "scales", "terms", "worst error"]
