"""Filters that something else computes with than the layer that is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from adderize.dataflow import Flow, is_leaf
from adderize.errors import AdderizeError
from adderize.surgery.roles import LAYER_FUNCTIONS, MULTIPLICATIONS

_HOLDERS = (nn.ParameterList, nn.ParameterDict)
_PRODUCTS = LAYER_FUNCTIONS | MULTIPLICATIONS | {
    "addbmm", "addmv", "baddbmm", "bilinear", "bmm", "einsum", "embedding", "imatmul", "inner",
    "mm", "multi_head_attention_forward", "mv", "rmatmul", "scaled_dot_product_attention",
    "tensordot",
}  # fmt: skip


def check_ties(model: nn.Module, flows: Sequence[Flow], layers: Mapping[nn.Module, str]) -> None:
    """Raise where filters of layers to convert are also those of a convolution that stays.

    Who only holds them, for a penalty on the filters say, does no harm.
    """
    owners = {parameter: name for layer, name in layers.items() for parameter in layer.parameters()}
    for name, module in model.named_modules():
        if module in layers or isinstance(module, _HOLDERS):
            continue
        for parameter in module.parameters(recurse=False):
            # What a module of the model's own does with it, the flows tell.
            if parameter in owners and (is_leaf(module) or not flows):
                raise AdderizeError(
                    f"{owners[parameter]} shares its filters with {name or 'the model'}, which "
                    "stays: convert both or neither (include=, exclude=)"
                )
    for flow in flows:
        for node in flow.nodes:
            for parameter in node.parameters if node.name in _PRODUCTS else ():
                if parameter in owners:
                    raise AdderizeError(
                        f"{owners[parameter]} shares its filters with a call of {node.name} in a "
                        "forward, which stays: leave the layer out (exclude=)"
                    )
