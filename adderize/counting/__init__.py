"""Operation budgets: multiplications against additions, before and after a conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adderize.arguments import check_module
from adderize.counting.budget import OpBudget
from adderize.counting.costs import CostTable, energy_table, latency_table
from adderize.counting.rows import Layer, Uncounted, sum_of
from adderize.counting.trace import Call, trace
from adderize.counting.views import ADDERS, adder_twin, own_norms, read_as
from adderize.errors import AdderizeError
from adderize.formulas import FREE
from adderize.layers.binary import BinaryConv2d
from adderize.models.by_name import own_input_size

__all__ = ["Layer", "OpBudget", "Uncounted", "count"]

_Table = CostTable | str | Path | None
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "adder": ADDERS,
    "binary": (BinaryConv2d,),
    "convolution": (_ConvNd,),
    "linear": (nn.Linear,),
    "norm": (_NormBase, nn.LayerNorm, nn.GroupNorm),
}


def count(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    energy: _Table = None,
    latency: _Table = None,
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
            already is taken as it is unless options are given.
        input_size: of one example without the batch, such as (3, 224, 224); by default the model's
            own, from `input_size`, Lightning's `example_input_array` or timm's `default_cfg`.
        energy: a table in joule: a name of ``adderize.counting.costs.ENERGY``, a JSON file or a
            table; float32 by default.
        latency: a table in cycles: a JSON file or a table; the paper's VIA Nano 2000 by default.
        **options: of :func:`adderize.adderize`.

    Returns:
        the budget: ``print`` shows it; it also has JSON, CSV, Markdown and a plot.

    Raises:
        AdderizeError: an unknown input size, an input that the model does not accept, control flow
            that depends on values, options that :func:`adderize.plan` refuses, a bad table.
    """
    check_module(model)
    tables = energy_table(energy), latency_table(latency)
    size = _input_size(model, input_size)
    twin = adder_twin(model, size, **options)
    calls = trace(twin, size)
    layers = _layers(twin, calls)
    total = sum_of(layers, "")
    return OpBudget(
        type(model).__name__, size, total.before, total.after, layers, _uncounted(calls), *tables
    )


def _layers(model: nn.Module, calls: Sequence[Call]) -> tuple[Layer, ...]:
    modules, added = dict(model.named_modules()), own_norms(model)
    layers: dict[str, Layer] = {}
    for call in calls:
        module = modules[call.layer]
        before = FREE if call.layer in added else read_as(call, "convolution")
        after = read_as(call, "adder")
        if before == after == FREE:
            continue
        row = layers.get(call.layer)
        layers[call.layer] = Layer(
            call.layer,
            _kind(module),
            type(module).__name__,
            tuple(call.output[1:]),
            before + (row.before if row else FREE),
            after + (row.after if row else FREE),
        )
    return tuple(layers.values())


def _kind(module: nn.Module) -> str:
    return next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "other")


def _uncounted(calls: Sequence[Call]) -> tuple[Uncounted, ...]:
    missing = Counter((call.operator, call.layer) for call in calls if call.operations is None)
    return tuple(Uncounted(operator, layer, n) for (operator, layer), n in missing.items())


def _input_size(model: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    size = own_input_size(model) if given is None else given
    if size is None:
        raise AdderizeError(
            f"{type(model).__name__} does not say how large its input is: pass its size "
            "without the batch (input_size, --input), such as 3, 224, 224"
        )
    sizes = tuple(size)
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise AdderizeError(
            f"input_size is {given!r}; expected positive integers without the batch, such as "
            "(3, 224, 224)"
        )
    return sizes
