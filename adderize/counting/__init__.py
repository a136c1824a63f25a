"""Operation budgets: multiplications against additions, before and after a conversion."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adderize.arguments import check_choice, check_module
from adderize.counting import fvcore
from adderize.counting.budget import OpBudget
from adderize.counting.costs import CostTable, energy_tables, latency_table
from adderize.counting.fvcore import FlopCountAnalysis
from adderize.counting.programs import count_integers
from adderize.counting.rows import Layer, Uncounted, Views, merged, sum_of
from adderize.counting.trace import Call, trace
from adderize.counting.views import ADDERS, Reading, adder_twin
from adderize.errors import AdderizeError
from adderize.integer import IntegerNetwork
from adderize.layers import (
    BinaryConv2d,
    ShiftAddConv2d,
    ShiftAddLinear,
    ShiftAddNorm1d,
    ShiftAddNorm2d,
)
from adderize.models.by_name import own_input_size

__all__ = ["FlopCountAnalysis", "Layer", "OpBudget", "Uncounted", "count"]

Counter = Literal["meta", "fvcore"]
COUNTERS: tuple[Counter, ...] = get_args(Counter)
_TRACERS = {"meta": trace, "fvcore": fvcore.trace}
_Table = CostTable | str | Path | None
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "adder": ADDERS,
    "binary": (BinaryConv2d,),
    "convolution": (_ConvNd, ShiftAddConv2d),
    "linear": (nn.Linear, ShiftAddLinear),
    "norm": (_NormBase, nn.LayerNorm, nn.GroupNorm, ShiftAddNorm1d, ShiftAddNorm2d),
}


def count(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    energy: _Table = None,
    latency: _Table = None,
    counter: Counter = "meta",
    **options: Any,
) -> OpBudget:
    """Operations of a network by kind, as a convolutional and as an adder network.

    Counts everything that one forward pass in evaluation mode computes: norms, biases, activations,
    pooling and the layers that stay convolutions too, which the AdderNet paper leaves out
    (Chen et al., CVPR 2020). An adder pair is two additions; :mod:`adderize.formulas` has
    every convention. The model is traced as a copy without storage and is left alone.

    Args:
        model: converted or not. "before" is the network with convolutions in the place of adders
            and binary layers, without the norms that those own; "after" is what
            ``adderize(model, **options)`` gives. A model that holds adders or binary layers
            already is taken as it is unless options are given; an integer network always is.
        input_size: of one example without the batch, such as (3, 224, 224); by default the model's
            own, from `input_size`, Lightning's `example_input_array` or timm's `default_cfg`.
        energy: a table in joule: a name of ``adderize.counting.costs.ENERGY``, a JSON file or a
            table, for all operations; by default each operation's is that of its numbers: float32
            or float16, int8 for the pairs of adders on bytes, int32 for integer networks and for
            the bit counts of binary layers.
        latency: a table in cycles: a JSON file or a table; the paper's VIA Nano 2000 by default.
        counter: "meta" traces PyTorch's dispatcher on tensors without storage; "fvcore" traces
            TorchScript with zeros, by :class:`FlopCountAnalysis`: slower, and as large as the
            network. The numbers are the same, from two independent sources; where control flow
            depends on values, which "meta" refuses, "fvcore" counts the way that zeros take.
        **options: of :func:`adderize.adderize`.

    Returns:
        the budget: ``print`` shows it; it also has JSON, CSV, Markdown and a plot.

    Raises:
        AdderizeError: an unknown input size, an input that the model does not accept, control flow
            that depends on values, options that :func:`adderize.plan` refuses, a bad table.
    """
    check_module(model)
    check_choice("counter", counter, COUNTERS)
    tables = energy_tables(energy), latency_table(latency)
    if isinstance(model, IntegerNetwork):
        if options or counter != "meta":
            raise AdderizeError("an integer network is counted as it is: leave out the options")
        return count_integers(model, input_size, *tables)
    size = _input_size(model, input_size)
    twin = adder_twin(model, size, **options)
    reading = Reading(twin)
    calls = _TRACERS[counter](twin, size)
    layers = _layers(twin, reading, calls)
    total = sum_of(layers, "")
    return OpBudget(type(model).__name__, size, total, layers, _uncounted(calls), *tables)


def _layers(model: nn.Module, reading: Reading, calls: Sequence[Call]) -> tuple[Layer, ...]:
    """A row for each layer that computes, in order of their first operations."""
    modules = dict(model.named_modules())
    # The last call of a layer may be free, such as the view behind a product of matrices.
    outputs = {call.layer: tuple(call.output[1:]) for call in calls if call.output}
    computed: dict[str, dict[str, Views]] = {}
    for call in calls:
        parts = [computed.get(call.layer, {}), reading.by_dtype(call)]
        if by_dtype := merged(parts):
            computed[call.layer] = by_dtype
    return tuple(
        Layer(
            name,
            _kind(modules[name]),
            type(modules[name]).__name__,
            outputs.get(name, ()),
            by_dtype,
        )
        for name, by_dtype in computed.items()
    )


def _kind(module: nn.Module) -> str:
    return next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "other")


def _uncounted(calls: Sequence[Call]) -> tuple[Uncounted, ...]:
    uncounted = [call for call in calls if call.operations is None]
    missing = collections.Counter((call.operator, call.layer) for call in uncounted)
    return tuple(Uncounted(operator, layer, n) for (operator, layer), n in missing.items())


def _input_size(model: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    size = own_input_size(model) if given is None else given
    if size is None:
        raise AdderizeError(
            f"{type(model).__name__} does not say how large its input is: pass its size "
            "without the batch (input_size, --input), such as 3, 224, 224"
        )
    sizes = tuple(size) if isinstance(size, Iterable) else ()
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise AdderizeError(
            f"input_size is {given!r}; expected positive integers without the batch, such as "
            "(3, 224, 224)"
        )
    return sizes
