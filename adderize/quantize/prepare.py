"""A float network made ready for quantization: as a graph where it can be traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adderize.dataflow.undisturbed import restored
from adderize.errors import one_line
from adderize.quantize.calls import adders_of
from adderize.quantize.observe import named_failures
from adderize.quantize.traced import TracedNetwork
from adderize.quantize.untraced import UntracedNetwork

_REPEATED = 1e-5


def prepare(
    model: nn.Module, inputs: Tensor, *, trains: bool = False
) -> TracedNetwork | UntracedNetwork:
    """The network as a graph that computes what the model does, or else layer by layer.

    Args:
        model: in evaluation mode; its modules are used, not copied.
        inputs: a batch to compare the two on.
        trains: see :func:`adderize.quantize.float_graph.float_graph`.
    """
    with named_failures("the first calibration batch"), restored(model):
        expected = model(inputs.clone())  # a model may change its input in place
        again = model(inputs.clone())
    if adders_of(model).keys() == {""}:
        return UntracedNetwork(model, "it is a single layer")
    if _difference(again, expected) > _REPEATED:
        return UntracedNetwork(model, "a second call gives another result than the first")
    try:
        with restored(model) as state:
            network = TracedNetwork.of(model, inputs, trains=trains)
            if state.has_other_tensors():
                return UntracedNetwork(model, "it changes tensors that it keeps")
            output = network.run(inputs)
    except Exception as error:
        return UntracedNetwork(model, one_line(error)[:200])
    difference = _difference(output, expected)
    # A deep network may turn differences in the last digit into large ones.
    if difference > 1e-3:
        with restored(model):
            disturbed = _difference(model(inputs * (1 + 1e-6)), expected)
        if difference > 10 * disturbed:
            return UntracedNetwork(model, "the traced network computes something else")
    return network


def _difference(output: Any, expected: Any) -> float:
    """The largest one of any tensor, as a share of its largest value."""
    found, wanted = [*_tensors(output)], [*_tensors(expected)]
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
        return math.inf
    shares = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
        for a, b in zip(found, wanted, strict=True)
        if b.is_floating_point() and b.numel()
    ]
    return max((math.inf if math.isnan(share) else share for share in shares), default=0.0)


def _tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
