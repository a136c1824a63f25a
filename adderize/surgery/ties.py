"""Filters that something else computes with than the layer that is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from adderize.dataflow import Flow, is_leaf
from adderize.errors import AdderizeError
from adderize.surgery.functions import PRODUCTS

_HOLDERS = (nn.ParameterList, nn.ParameterDict)


def check_ties(model: nn.Module, flows: Sequence[Flow], layers: Mapping[nn.Module, str]) -> None:
    """Raise where filters of layers to convert are also those of a convolution that stays.

    Who only holds them, for a penalty on the filters say, does no harm.
    """
    owners = {
        parameter: name
        for layer, name in layers.items()
        for key, parameter in layer.named_parameters(recurse=False)
        if key in ("weight", "bias")  # what a user put beside them stays as it is
    }
    memory = _Memory(owners)
    for name, module in model.named_modules():
        if module in layers or isinstance(module, _HOLDERS):
            continue
        # What a module of the model's own does with them, the flows tell.
        computes = is_leaf(module) or not flows
        for parameter in module.parameters(recurse=False) if computes else ():
            owner = memory.owner(parameter)
            if owner is not None:
                raise AdderizeError(
                    f"{owner} shares its filters with {name or 'the model'}, which stays: convert "
                    "both or neither (include=, exclude=)"
                )
    for flow in flows:
        for node in flow.nodes:
            for parameter in node.parameters if node.name in PRODUCTS else ():
                if parameter in owners:
                    raise AdderizeError(
                        f"{owners[parameter]} shares its filters with a call of {node.name} in a "
                        "forward, which stays: leave the layer out (exclude=)"
                    )


class _Memory:
    """The memory of parameters: another one may refer to it (``nn.Parameter(layer.weight)``)."""

    def __init__(self, owners: Mapping[nn.Parameter, str]) -> None:
        self._owners = owners
        self._extents: dict[int, list[tuple[int, int, str]]] = {}
        for parameter, name in owners.items():
            if (extent := _extent(parameter)) is not None:
                storage, first, end = extent
                self._extents.setdefault(storage, []).append((first, end, name))

    def owner(self, parameter: nn.Parameter) -> str | None:
        """The name of the layer whose parameter this is, or overlaps with."""
        if parameter in self._owners or (extent := _extent(parameter)) is None:
            return self._owners.get(parameter)
        storage, first, end = extent
        near = self._extents.get(storage, ())
        return next((name for low, high, name in near if first < high and low < end), None)


def _extent(parameter: nn.Parameter) -> tuple[int, int, int] | None:
    """Storage, first byte and end of what a parameter refers to; None where it has no memory."""
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    if not plain or parameter.is_meta or not parameter.numel():
        return None
    pairs = zip(parameter.shape, parameter.stride(), strict=True)
    length = 1 + sum((size - 1) * stride for size, stride in pairs)
    first = int(parameter.storage_offset()) * parameter.element_size()
    storage: int = parameter.untyped_storage()._cdata
    return storage, first, first + length * parameter.element_size()
