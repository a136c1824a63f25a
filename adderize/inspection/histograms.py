"""How the values of filters and inputs are distributed, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adderize.evaluation import evaluation, first_input
from adderize.inspection.measurement import batches_of
from adderize.inspection.rows import Layer, Range
from adderize.progress import steps

BINS = 48


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of equally wide bins from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


def filter_histograms(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Histogram]:
    """The filters of each layer of an inspection, by its name; without those not finite."""
    found = {}
    for row in layers:
        bins = _Bins.over(row.filters)
        weight = model.get_submodule(row.name).weight
        if bins is not None and isinstance(weight, Tensor):
            bins.add(weight.detach())
            found[row.name] = bins.histogram()
    return found


@torch.no_grad()
def input_histograms(
    model: nn.Module, images: Tensor, layers: Sequence[Layer]
) -> dict[str, Histogram]:
    """The inputs of each measured layer on the images of an inspection, in evaluation mode.

    The zeros of a padding are not among the values.

    Args:
        model: the inspected one; it is left as it was.
        images: those that were inspected, whose ranges the bins cover.
        layers: rows of the inspection; those without a finite input range are left out.
    """
    ranges = {row.name: row.inputs for row in layers if row.inputs is not None}
    bins = {name: own for name, range in ranges.items() if (own := _Bins.over(range)) is not None}
    with ExitStack() as hooks, evaluation(model):
        for name, own in bins.items():
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(_watch(own), with_kwargs=True))
        for batch in steps(batches_of(model, images), "histograms"):
            model(batch)
    return {name: own.histogram() for name, own in bins.items()}


def _watch(bins: _Bins) -> Any:
    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bins.add(first_input(args, kwargs))

    return see


class _Bins:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts = torch.zeros(BINS, dtype=torch.float64, device="cpu")

    @classmethod
    def over(cls, values: Range) -> _Bins | None:
        """Over a finite range; a single value gets some room around it."""
        if not all(map(math.isfinite, values)):
            return None
        room = 0.0 if values.max > values.min else max(abs(values.min), 1.0) / 2
        return cls(values.min - room, values.max + room)

    def add(self, values: Tensor) -> None:
        self.counts += torch.histc(values.float(), BINS, self.low, self.high).double().cpu()

    def histogram(self) -> Histogram:
        return Histogram(self.low, self.high, tuple(int(n) for n in self.counts.tolist()))
