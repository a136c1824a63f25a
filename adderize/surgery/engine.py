"""Turning a layer into one of another class in place.

A layer keeps being the same object: its parameters, hooks (and their handles), flags and whoever
refers to it (a parent, several parents, a plain list) need no care, and shared layers stay shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from adderize.layers import AdderConv2d, AdderConv2dSame, AdderLinear, BinaryConv2d, Converted
from adderize.surgery.decisions import Decision, Reason


def adder_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The adder class of a layer's exact class, None where there is none."""
    return _ADDERS.get(_class_path(type(layer)))


def binary_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The binary class of a layer's exact class, None where there is none."""
    return BinaryConv2d if type(layer) is nn.Conv2d else None


def original_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The class that a converted layer came from, None for any other layer."""
    if type(layer) is AdderConv2dSame:
        from timm.layers.conv2d_same import Conv2dSame

        return Conv2dSame
    return _ORIGINALS.get(type(layer))


def _class_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# By path, so that timm is imported only where a model has brought it.
_ADDERS: dict[str, type[nn.Module]] = {
    _class_path(nn.Conv2d): AdderConv2d,
    _class_path(nn.Linear): AdderLinear,
    "timm.layers.conv2d_same.Conv2dSame": AdderConv2dSame,
    "timm.layers.linear.Linear": AdderLinear,
}
_ORIGINALS: dict[type, type[nn.Module]] = {
    AdderConv2d: nn.Conv2d,
    AdderLinear: nn.Linear,
    BinaryConv2d: nn.Conv2d,
}


@dataclass(frozen=True)
class Target:
    """What a conversion turns layers into.

    Attributes:
        decision: the plan's word for a layer that is one already.
        is_already: its reason for that.
        classes: of those layers.
        kind_of: the class that a layer would become, None for one without such a form.
        norm_side: where a layer needs a norm: among the "users" of its output, or the "sources" of
            its input.
    """

    decision: Decision
    is_already: Reason
    classes: tuple[type[nn.Module], ...]
    kind_of: Callable[[nn.Module], type[nn.Module] | None]
    norm_side: str


ADDER = Target(Decision.ADDER, Reason.IS_ADDER, (AdderConv2d, AdderLinear), adder_kind, "users")
BINARY = Target(Decision.BINARY, Reason.IS_BINARY, (BinaryConv2d,), binary_kind, "sources")


def become(layer: nn.Module, kind: type[nn.Module], **attributes: Any) -> None:
    """Make a layer an instance of another class with the same parameters, in place."""
    layer.__class__ = kind
    layer.norm = None  # type: ignore[assignment]
    for name, value in attributes.items():
        setattr(layer, name, value)


def become_original(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Make a converted layer an instance of its original class; its own norm is dropped."""
    layer.__class__ = kind
    del layer.norm
    vars(layer).pop("gradient", None)


def converted_layers(model: nn.Module) -> dict[str, Converted]:
    """A model's adders and binary layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Converted)}
