"""Converted layers back into what they came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from adderize.errors import AdderizeError
from adderize.surgery.checks import check_model, check_not_replaced
from adderize.surgery.engine import become_original, converted_layers, original_kind
from adderize.surgery.fusion_guard import guard_fusion


@contextlib.contextmanager
def all_or_none(model: nn.Module) -> Iterator[None]:
    """Layers that are converted meanwhile are again what they were where anything fails."""
    before = {module: type(module) for module in model.modules()}
    try:
        yield
    except BaseException:
        for module, kind in before.items():
            if type(module) is not kind:
                become_original(module, kind)
        guard_fusion(model)
        raise


def restore(model: nn.Module) -> nn.Module:
    """Turn adders and binary layers back into convolutions and linear layers, in place.

    Filters and biases stay as they are now; the norms that the layers own are dropped.

    Returns:
        the model itself.

    Raises:
        AdderizeError: the model holds no converted layers, or one of a class of its own (a
            subclass), with a parametrisation or with a forward put on the instance, or is wrapped
            or compiled.
    """
    check_model(model)
    converted = converted_layers(model)
    if not converted:
        raise AdderizeError("restore found no adder layers in the model, and no binary ones")
    kinds: list[type[nn.Module]] = []
    for name, layer in converted.items():
        kind = original_kind(layer)
        if is_parametrized(layer):
            raise AdderizeError(
                f"{name or 'the model'} computes its filters (parametrisation): make them plain "
                "first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if kind is None:
            raise AdderizeError(
                f"{name or 'the model'} is a {type(layer).__name__}, which came from no layer of "
                "torch: replace it by hand, or restore the parts of the model without it"
            )
        check_not_replaced(name, layer)
        kinds.append(kind)
    for layer, kind in zip(converted.values(), kinds, strict=True):
        become_original(layer, kind)
    guard_fusion(model)
    return model
