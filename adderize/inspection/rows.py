"""What an inspection holds: layers, their norms, and findings, as data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from adderize.inspection.measurement import Measured
from adderize.layers import Adder


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
