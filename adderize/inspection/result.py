"""An inspection as data and as text: a table for reading, JSON, CSV, Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from adderize.errors import listed
from adderize.layers import Adder
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

if TYPE_CHECKING:
    from adderize.inspection.measurement import Measured


class Range(NamedTuple):
    """The smallest and the largest value."""

    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.min:.3g} to {self.max:.3g}"


@dataclass(frozen=True)
class NormState:
    """A norm and its statistics.

    Attributes:
        name, kind: qualified name and class name.
        frozen: whether it does not train.
        running: whether it keeps running statistics.
        updated: whether those, or what replaced them, are other than those of a new norm.
        batches: how many batches they were updated with; None where nothing counts them (files of
            some programs set the counter to 0).
        smallest_gamma, largest_gamma: by absolute value.
        mean_shift: between the running means and the images', in running deviations (root mean
            square over channels); None without images.
        variance_ratio: variances of the images to the running ones (geometric mean).
    """

    name: str
    kind: str
    frozen: bool
    running: bool
    updated: bool
    batches: int | None
    smallest_gamma: float | None
    largest_gamma: float | None
    mean_shift: float | None
    variance_ratio: float | None


@dataclass(frozen=True)
class Layer:
    """A layer with filters; all that needs images is None without them, or if it was not called.

    Attributes:
        name, kind, shape: qualified name, class name, shape of the filters.
        filters, filter_mean, filter_std: range, mean and deviation of all filter values.
        inputs: range of the inputs, the zeros of a padding included.
        outside: share of an adder's filter values outside the input range: each one acts as plus
            or minus the input and a constant, whatever its size.
        output_mean, output_std: over all images, positions and channels, before the norm.
        correlation: mean correlation between output channels.
        norm: the norm after the layer.
        gradient: of an adder, what it is set to.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    filters: Range
    filter_mean: float
    filter_std: float
    inputs: Range | None = None
    outside: float | None = None
    output_mean: float | None = None
    output_std: float | None = None
    correlation: float | None = None
    norm: NormState | None = None
    gradient: str | None = None

    @classmethod
    def of(
        cls, name: str, layer: nn.Module, measured: Measured | None, norm: NormState | None
    ) -> Layer:
        assert isinstance(layer.weight, Tensor)
        filters = layer.weight.detach()
        deviation, mean = filters.double().std(correction=0), filters.double().mean()
        row = cls(
            name=name,
            kind=type(layer).__name__,
            shape=tuple(filters.shape),
            filters=Range(*(value.item() for value in filters.aminmax())),
            filter_mean=float(mean),
            filter_std=float(deviation),
            norm=norm,
            gradient=layer.gradient if isinstance(layer, Adder) else None,
        )
        if measured is None or not measured.count:
            return row
        outside = (filters < measured.min) | (filters > measured.max)
        is_adder = isinstance(layer, Adder)
        known = not math.isnan(measured.min)
        return dataclasses.replace(
            row,
            inputs=Range(measured.min, measured.max),
            outside=float(outside.double().mean()) if is_adder and known else None,
            output_mean=measured.mean,
            output_std=measured.std,
            correlation=measured.correlation,
        )


@dataclass(frozen=True)
class Finding:
    """Something to act on.

    Attributes:
        kind: such as "missing norm".
        name: of the layer or norm.
        detail: what was found there.
        advice: what to do; the same for every finding of a kind.
    """

    kind: str
    name: str
    detail: str
    advice: str

    @property
    def place(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


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
