"""One layer by itself: its bare copy, its matched filters, and how well it follows its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adderize.layers import Adder, pads_with_zeros
from adderize.transfer.features import Features
from adderize.transfer.slopes import Slopes, matched_filters

SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_AT_ONCE = 256


def bare(adder: Adder) -> Adder:
    """A layer of the same geometry without bias, norm and hooks, with a copy of the filters."""
    twin = type(adder).__new__(type(adder))
    nn.Module.__init__(twin)
    of_module = vars(twin).keys() | {"forward"}
    vars(twin).update({key: value for key, value in vars(adder).items() if key not in of_module})
    twin.norm = None
    twin.gradient = "sign"
    twin.weight = nn.Parameter(adder.weight.detach().clone())
    twin.register_parameter("bias", None)
    return twin


def original_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The teacher's layer without its hooks."""
    return lambda inputs: type(layer).forward(layer, inputs)


def match_filters(
    layer: Adder, original: nn.Module, features: Sequence[Features], before: Tensor
) -> Tensor:
    """Give each filter of a bare layer the best of its present and its matched values.

    Args:
        before: (Cout,), the correlations with the present filters.

    Returns:
        (Cout,), the correlations after it.
    """
    filters = original.weight
    assert isinstance(filters, Tensor)
    slopes = Slopes(*(f.inputs for f in features), with_zero=pads_with_zeros(layer))
    best, highest = layer.weight.detach().clone(), before
    for scale in SCALES:
        layer.weight.copy_(matched_filters(slopes, filters, getattr(original, "groups", 1), scale))
        found = correlations_of(layer, features)
        better = found > highest.nan_to_num(-2.0)
        best[better] = layer.weight[better]
        highest = torch.where(better, found, highest)
    layer.weight.copy_(best)
    return highest


def correlations_of(layer: Callable[[Tensor], Tensor], features: Sequence[Features]) -> Tensor:
    """The correlation of each output channel with its target, the mean over calls and sizes.

    Returns:
        (Cout,) float64, NaN for channels that are constant.
    """
    found = [
        _correlations(torch.cat([layer(part) for part in f.inputs.split(_AT_ONCE)]), f.targets)
        for f in features
    ]
    return torch.stack(found).nanmean(0)


def _correlations(outputs: Tensor, targets: Tensor) -> Tensor:
    a, b = (t.movedim(1, 0).flatten(1) for t in (outputs, targets))
    a, b = (t - t.mean(1, keepdim=True) for t in (a, b))
    ab, aa, bb = ((p * q).sum(1, dtype=torch.float64) for p, q in ((a, b), (a, a), (b, b)))
    return ab / (aa * bb).sqrt()
