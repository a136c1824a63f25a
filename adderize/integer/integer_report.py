"""What an integer network computes and holds, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from adderize.formulas import FREE, Operations
from adderize.integer.integer_network import IntegerNetwork
from adderize.integer.multiplication_free import shifts_of_network
from adderize.integer.program import Instruction
from adderize.integer.program_operations import operations_of
from adderize.tables import Report, Table, csv_text, shape_text


@dataclass(frozen=True)
class IntegerLayerReport:
    """An instruction of a program.

    Attributes:
        layer, kind: its name and its kind, see :mod:`adderize.integer.program`.
        output, dtype: shape of its result for one image, and "uint8" or "int32".
        terms, fraction: powers of two of a scale or weight, and fraction bits; None without scales.
        worst_error: the largest relative error of a scale; None without.
        operations: for one image.
        tensor_bytes: of its filters, shifts, signs and biases.
    """

    layer: str
    kind: str
    output: tuple[int, ...]
    dtype: str
    terms: int | None
    fraction: int | None
    worst_error: float | None
    operations: Operations
    tensor_bytes: int


@dataclass(frozen=True)
class IntegerReport(Report):
    """The instructions in order, their sums, and memory; prints as a table.

    Attributes:
        input_size: (C, H, W).
        layers: one row for each instruction.
        operations: of all, for one image.
        tensor_bytes: of all filters, shifts, signs and biases.
        activation_bytes: the most that tensors between the layers need at a time, the image
            included.
    """

    input_size: tuple[int, ...]
    layers: tuple[IntegerLayerReport, ...]
    operations: Operations
    tensor_bytes: int
    activation_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_csv(self) -> str:
        rows = []
        for row in self.layers:
            flat = asdict(row) | {"output": shape_text(row.output)} | row.operations.by_kind()
            del flat["operations"]
            rows.append(flat)
        return csv_text(list(rows[0]), [list(row.values()) for row in rows])

    def to_markdown(self) -> str:
        return "\n\n".join([self._table().markdown(), self._summary()])

    def __str__(self) -> str:
        return "\n\n".join([self._table().text(), self._summary()])

    def _summary(self) -> str:
        counts = self.operations.by_kind()
        kinds = ("multiplications", "additions", "shifts", "comparisons")
        computed = ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds)
        return (
            f"{len(self.layers)} instructions for an image of {shape_text(self.input_size)}: "
            f"{computed}\n{self.tensor_bytes:,} bytes of filters, shifts and biases, at most "
            f"{self.activation_bytes:,} bytes between the layers"
        )

    def _table(self) -> Table:
        rows = [
            [
                row.layer, row.kind, shape_text(row.output), row.dtype, _text(row.terms),
                _text(row.fraction), "" if row.worst_error is None else f"{row.worst_error:.2%}",
                f"{row.operations.additions:,}", f"{row.operations.shifts:,}",
                f"{row.tensor_bytes:,}",
            ]
            for row in self.layers
        ]  # fmt: skip
        return Table(_HEADER, rows, texts=4)


_HEADER = [
    "layer", "kind", "output", "dtype", "terms", "fraction", "worst error", "additions", "shifts",
    "bytes",
]  # fmt: skip


def report_of_shifts(model: nn.Module) -> Report | None:
    """On an integer network or one of :func:`adderize.integer.multiplication_free`; None for any
    other."""
    if isinstance(model, IntegerNetwork):
        return integer_report(model)
    record = shifts_of_network(model)
    return None if record is None else record.report


def integer_report(network: IntegerNetwork) -> IntegerReport:
    """Layers, terms, fraction bits, errors, operations and memory of an integer network."""
    errors = {row.layer: row.worst_error for row in network.report.layers}
    rows = tuple(
        _row(network, step, errors.get(step.layer)) for step in network.program.instructions
    )
    return IntegerReport(
        network.input_size,
        rows,
        sum((row.operations for row in rows), FREE),
        sum(row.tensor_bytes for row in rows),
        network.program.activation_bytes(),
    )


def _row(
    network: IntegerNetwork, step: Instruction, worst_error: float | None
) -> IntegerLayerReport:
    slot, fraction = network.program.slots[step.output], step.settings.get("fraction")
    return IntegerLayerReport(
        layer=step.layer,
        kind=step.kind,
        output=slot.shape,
        dtype=slot.dtype,
        terms=len(step.tensors["shifts"]) if "shifts" in step.tensors else None,
        fraction=fraction if isinstance(fraction, int) else None,
        worst_error=worst_error,
        operations=operations_of(network.program, step),
        tensor_bytes=sum(tensor.nbytes for tensor in step.tensors.values()),
    )


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
