"""What quantization did to each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.fuse import Fusion
from adderize.quantize.qparams import QParams
from adderize.tables import Report, Table, bullets, csv_text, layer_text, lines_text


@dataclass(frozen=True)
class LayerReport:
    """One adder layer in integers.

    Attributes:
        layer: qualified name in the quantized network.
        low, high: what its input's bytes cover; inputs outside saturate.
        zero_point: the q of zero.
        clamped: share of the filters' values that lay outside, and were clamped exactly.
        fused: the operations in its epilogue.
        output: ``"bytes"`` or ``"float32"``.
        error: root mean square deviation from the float network at the layer's output, over the
            standard deviation there, on the first calibration images; what earlier layers deviate
            included. None for a layer that these images do not reach.
    """

    layer: str
    low: float
    high: float
    zero_point: int
    clamped: float
    fused: tuple[str, ...]
    output: str
    error: float | None


@dataclass(frozen=True)
class QuantizationReport(Report):
    """What became of each layer of a quantized network; prints as a table.

    Attributes:
        method, bits: as given to :func:`quantize`.
        layers: one entry an adder, in order of execution.
        remarks: what stayed float, and why.
    """

    method: str
    bits: int
    layers: tuple[LayerReport, ...]
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> QuantizationReport:
        try:
            layers = tuple(
                LayerReport(**{**row, "fused": tuple(row["fused"])}) for row in content["layers"]
            )
            remarks = tuple(content["remarks"])
            return cls(content["method"], content["bits"], layers, remarks)
        except (KeyError, TypeError) as error:
            raise AdderizeError(f"the report of the quantization is damaged: {error!r}") from error

    def to_csv(self) -> str:
        rows = [{**asdict(row), "fused": ", ".join(row.fused)} for row in self.layers]
        names = [field.name for field in fields(LayerReport)]
        return csv_text(names, [list(row.values()) for row in rows])

    def to_markdown(self) -> str:
        return "\n\n".join([self._table().markdown(), bullets(self._notes())])

    def __str__(self) -> str:
        return "\n".join([self._table().text(), "", lines_text(self._notes())])

    def _table(self) -> Table:
        return Table(_HEADER, [_cells(row) for row in self.layers])

    def _notes(self) -> list[str]:
        summary = f"{len(self.layers)} adders in {self.bits}-bit integers, ranges by {self.method}"
        return [summary, *self.remarks]


_HEADER = ["layer", "range", "zero", "clamped", "error", "output", "fused"]


def _cells(row: LayerReport) -> Sequence[str]:
    return [
        layer_text(row.layer),
        f"{row.low:.3g} .. {row.high:.3g}",
        str(row.zero_point),
        f"{row.clamped:.1%}",
        "-" if row.error is None else f"{row.error:.2%}",
        row.output,
        ", ".join(row.fused),
    ]


def layer_report(
    name: str,
    layer: nn.Module,
    fusion: Fusion,
    given: Mapping[Fusion, Tensor],
    expected: Mapping[Fusion, Tensor],
) -> LayerReport:
    """A line on one layer, from what it gives and what the float network gave there, if called."""
    assert isinstance(layer, QuantAdder)
    qparams, output = layer.qparams, layer.output_qparams
    return LayerReport(
        name,
        qparams.low,
        qparams.high,
        qparams.zero_point,
        layer.clamped,
        tuple(fusion.fused),
        "bytes" if output else "float32",
        _relative_error(output, given.get(fusion), expected.get(fusion)),
    )


def _relative_error(
    output: QParams | None, given: Tensor | None, expected: Tensor | None
) -> float | None:
    if given is None or expected is None or given.shape != expected.shape:
        return None
    values = output.to_float(given) if output else given
    deviation = float((values - expected).double().square().mean().sqrt())
    spread = float(expected.double().std(correction=0))
    return deviation / spread if spread else float(deviation > 0)
