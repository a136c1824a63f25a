"""All that a report tells, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from adderize.counting import OpBudget
from adderize.inspection import Inspection
from adderize.inspection.histograms import Histogram
from adderize.integer.integer_report import IntegerReport
from adderize.quantize import QuantizationReport
from adderize.reporting.notices import Notice, has_new_statistics, notices_of
from adderize.surgery import Plan
from adderize.tables import Report


@dataclass(frozen=True)
class Size:
    """What a network holds.

    Attributes:
        parameters: numbers that train, or would; None for a network in bytes or in shifts, whose
            filters are no parameters any more.
        bytes: of parameters and buffers, as they are in memory; of an integer network those of its
            program.
        of_layers: parameters by the qualified name of the layer that holds them.
    """

    parameters: int | None
    bytes: int
    of_layers: Mapping[str, int]

    @classmethod
    def of(cls, network: nn.Module) -> Size:
        """Of a network in float32."""
        tensors = [*network.parameters(), *network.buffers()]
        of_layers = {
            name: sum(p.numel() for p in module.parameters(recurse=False))
            for name, module in network.named_modules()
        }
        return cls(
            sum(p.numel() for p in network.parameters()),
            sum(tensor.nbytes for tensor in tensors),
            {name: number for name, number in of_layers.items() if number},
        )

    @classmethod
    def of_made(cls, network: nn.Module, shifts: Report | None) -> Size:
        """Of a network that was made of an adder network; an integer one has a report."""
        if isinstance(shifts, IntegerReport):
            return cls(None, shifts.tensor_bytes, {})
        return dataclasses.replace(cls.of(network), parameters=None, of_layers={})


@dataclass(frozen=True)
class Contents:
    """What there is to know about a network.

    Attributes:
        name: of the model.
        source: what the images are that it was measured on; may be empty.
        size: parameters and memory of the adder network.
        plan: which layers become adders, or are; None for what was made of an adder network.
        budget: operations, energy and latency, before and after.
        inspection: of the adder network, with its findings.
        filters, inputs: histograms by layer.
        quantization: what 8 bits change.
        shifts: of a network without multiplications; None for others.
        absent: why a part is None: ``plan``, ``layers`` or ``quantization``, and the reason.
    """

    name: str
    source: str
    size: Size
    plan: Plan | None
    budget: OpBudget
    inspection: Inspection | None
    filters: Mapping[str, Histogram]
    inputs: Mapping[str, Histogram]
    quantization: QuantizationReport | None
    shifts: Report | None
    absent: Mapping[str, str]

    @property
    def is_settled(self) -> bool:
        """Whether no norm has the statistics of a new one, behind which no range means much."""
        return not has_new_statistics(self.inspection)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What to act on, the gravest first."""
        return notices_of(self.plan, self.budget, self.inspection, self.quantization)
