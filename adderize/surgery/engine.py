"""Turning a layer into one of another class in place.

A layer keeps being the same object: its parameters, hooks (and their handles), flags and whoever
refers to it (a parent, several parents, a plain list) need no care, and shared layers stay shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adderize.binary import BinaryConv2d
from adderize.layers import AdderConv2d, AdderLinear


class AdderConv2dSame(AdderConv2d):
    """Adder convolution with TensorFlow's "SAME" padding, computed from each input's size.

    The adder form of timm's ``Conv2dSame``: ceil(size / stride) outputs a side, any odd pixel of
    padding at the bottom and right. Its ``padding`` attribute reads (0, 0) as the original's does.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads = same_padding(input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        return super().forward(F.pad(input, pads))


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """TensorFlow's "SAME" padding as ``F.pad`` takes it: left, right, top, bottom."""
    pads: list[int] = []
    for pixels, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        outputs = -(-pixels // step)
        total = max((outputs - 1) * step + (taps - 1) * spread + 1 - pixels, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads


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
        classes: of those layers.
        kind_of: the class that a layer would become, None for one without such a form.
        norm_side: where a layer needs a norm: among the "users" of its output, or the "sources" of
            its input.
    """

    decision: str
    classes: tuple[type[nn.Module], ...]
    kind_of: Callable[[nn.Module], type[nn.Module] | None]
    norm_side: str


ADDER = Target("adder", (AdderConv2d, AdderLinear), adder_kind, "users")
BINARY = Target("binary", (BinaryConv2d,), binary_kind, "sources")
Converted = AdderConv2d | AdderLinear | BinaryConv2d


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


def named_layers(model: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """Each module once, in registration order, with all the names it is registered under."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    yield from names.items()
