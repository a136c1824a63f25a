"""An inspection as data and as text: a table for reading, JSON, CSV, Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adderize.errors import listed
from adderize.inspection.rows import Finding, Layer, NormState, Range
from adderize.tables import (
    Report,
    Table,
    bullets,
    csv_text,
    layer_text,
    lines_text,
    markdown,
    plain,
    shape_text,
    visible,
)

# Between them the trained networks at hand have either gradient: docs/transfer.md.
_FEW, _MOST = 0.3, 0.7


@dataclass(frozen=True)
class Inspection(Report):
    """What :func:`inspect` saw; prints as a table.

    Attributes:
        model: its name.
        images: how many it was measured on; 0 for none.
        layers: those with filters, in registration order.
        findings: what to act on.
    """

    model: str
    images: int
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """NaN and infinity become None."""
        more = {"outside": self.outside, "gradient": self.gradient}
        found: dict[str, Any] = plain({**dataclasses.asdict(self), **more})
        return found

    @property
    def outside(self) -> float | None:
        """Share of all adders' filter values outside the range of their inputs; None without
        adders, or without images."""
        adders = [
            (math.prod(row.shape), row.outside) for row in self.layers if row.outside is not None
        ]
        count = sum(size for size, _ in adders)
        return sum(size * share for size, share in adders) / count if count else None

    @property
    def gradient(self) -> str | None:
        """The gradient that clearly fits: ``"full"`` where 70 % of the filter values and more lie
        outside their inputs, ``"sign_input"`` where 30 % and fewer do; None between, and as for
        `outside`."""
        if self.outside is None or _FEW < self.outside < _MOST:
            return None
        return "full" if self.outside >= _MOST else "sign_input"

    @property
    def gradient_advice(self) -> str | None:
        """Which gradient fits, and which the adders have; None as for `outside`."""
        if self.outside is None:
            return None
        have = Counter(row.gradient for row in self.layers if row.gradient is not None)
        fits = f"gradient={self.gradient!r} fits them"
        if list(have) == [self.gradient]:
            return f"{fits}, and the adders have it"
        counts = (f"{mode!r} ({count})" for mode, count in have.items())
        modes = ", ".join(counts) if len(have) > 1 else repr(*have)
        start = f"{fits}, but" if self.gradient else "either gradient may fit;"
        return f"{start} the adders have {modes}"

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings, together where they are of one kind."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.kind, []).append(finding)
        return found

    def to_csv(self) -> str:
        rows = [_flat(layer) for layer in self.layers]
        return csv_text(list(rows[0]), (list(row.values()) for row in rows))

    def to_markdown(self) -> str:
        findings = [bullets(self._finding_lines())] if self.findings else []
        title = self._title(markdown(self.model))
        return "\n\n".join([title, self._table().markdown(), *findings])

    def __str__(self) -> str:
        findings = self._finding_lines() or ["nothing to warn of"]
        title = self._title(visible(self.model))
        return "\n\n".join([title, self._table().text(), lines_text(findings)])

    def _title(self, model: str) -> str:
        images = "1 image" if self.images == 1 else f"{self.images} images"
        seen = f"measured on {images}" if self.images else "without images"
        title = f"{model}, {len(self.layers)} layers, {seen}"
        if self.outside is None:
            return title
        return (
            f"{title}\n{self.outside:.0%} of the adders' filter values lie outside the range of "
            f"their inputs: {self.gradient_advice}"
        )

    def _table(self) -> Table:
        columns = _COLUMNS if self.images else {**_FILTER_COLUMNS, **_NORM_COLUMNS}
        rows = [[show(row) for show in columns.values()] for row in self.layers]
        return Table(list(columns), rows, texts=4)

    def _finding_lines(self) -> list[str]:
        """One line a kind, with the first of its places."""
        return [
            f"{kind}: {listed([finding.place for finding in same])}. {same[0].advice}"
            for kind, same in self.by_kind().items()
        ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _norm_name(layer: Layer) -> str:
    if layer.norm is None:
        return "none"
    return f"{layer.norm.name} (frozen)" if layer.norm.frozen else layer.norm.name


def _gammas(layer: Layer) -> str:
    norm = layer.norm
    if norm is None or norm.smallest_gamma is None or norm.largest_gamma is None:
        return ""
    return str(Range(norm.smallest_gamma, norm.largest_gamma))


_Columns = dict[str, Callable[[Layer], str]]
_FILTER_COLUMNS: _Columns = {
    "layer": lambda row: layer_text(row.name),
    "kind": lambda row: row.kind,
    "filters": lambda row: shape_text(row.shape),
    "norm": _norm_name,
    "filter range": lambda row: str(row.filters),
    "filter std": lambda row: _number(row.filter_std),
}
_MEASURED_COLUMNS: _Columns = {
    "input range": lambda row: "" if row.inputs is None else str(row.inputs),
    "outside": lambda row: "" if row.outside is None else f"{row.outside:.1%}",
    "output mean": lambda row: _number(row.output_mean),
    "output std": lambda row: _number(row.output_std),
}
_NORM_COLUMNS: _Columns = {"abs gamma": _gammas}
_STALENESS_COLUMNS: _Columns = {
    "mean shift": lambda row: "" if row.norm is None else _number(row.norm.mean_shift),
    "variance ratio": lambda row: "" if row.norm is None else _number(row.norm.variance_ratio),
}
_COLUMNS: _Columns = {**_FILTER_COLUMNS, **_MEASURED_COLUMNS, **_NORM_COLUMNS, **_STALENESS_COLUMNS}


def _flat(layer: Layer) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in dataclasses.asdict(layer).items():
        if key in ("filters", "inputs"):
            low, high = value or (None, None)
            row |= {f"{key}.min": low, f"{key}.max": high}
        elif key == "shape":
            row[key] = shape_text(value)
        elif key == "norm":
            fields = [field.name for field in dataclasses.fields(NormState)]
            row |= {f"norm.{field}": (value or {}).get(field) for field in fields}
        else:
            row[key] = value
    return row
