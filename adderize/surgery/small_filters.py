"""Filters of adders that are as small as a convolution's, and so compute nothing useful."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from torch import nn

from adderize.layers import Adder

# Between a trained ResNet-20's convolutions, 0.08 to 0.16, and the authors' adders, 5 to 10.
_OF_CONVOLUTIONS = 0.4


def deviation_of_convolutions(layers: Iterable[nn.Module]) -> float | None:
    """The median standard deviation of the adders' filters, where it is a convolution's.

    Both kinds of layers load each other's weights without a word.
    """
    deviations = [
        float(layer.weight.detach().std(correction=0))
        for layer in layers
        if isinstance(layer, Adder)
    ]
    if not deviations:
        return None
    median = statistics.median(deviations)
    return median if median < _OF_CONVOLUTIONS else None
