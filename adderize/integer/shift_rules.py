"""What each operation of a network becomes where nothing may be multiplied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from adderize.integer.refusal import RefusedError, check_plain, check_windows
from adderize.layers import (
    AdderConv2d,
    AdderConv2dSame,
    AdderLinear,
    ShiftAddAdaptiveAvgPool2d,
    ShiftAddAvgPool2d,
    ShiftAddConv2d,
    ShiftAddLeakyReLU,
    ShiftAddLinear,
    ShiftAddMean,
    ShiftAddNorm1d,
    ShiftAddNorm2d,
    ShiftAddScale,
)
from adderize.quantize.calls import (
    JOINS,
    MOVES,
    NEAREST,
    PRODUCTS,
    QUOTIENTS,
    is_foldable,
    is_repetition,
)

_ADDERS = (AdderConv2d, AdderConv2dSame, AdderLinear)
_FREE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
    _MaxPoolNd, _AdaptiveMaxPoolNd, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_FREE_FUNCTIONS = MOVES | JOINS | {
    "abs", "adaptive_max_pool1d", "adaptive_max_pool2d", "add", "amax", "amin", "argmax", "argmin",
    "broadcast_to", "channel_shuffle", "clamp", "clamp_max", "clamp_min", "clip", "clone", "expand",
    "flip", "hardtanh", "identity", "max", "max_pool1d", "max_pool2d", "maximum", "min", "minimum",
    "movedim", "narrow", "neg", "pad", "relu", "relu6", "repeat", "roll", "rsub", "select", "stack",
    "sub", "subtract", "sum", "swapaxes", "swapdims", "tensor_split", "threshold", "tile", "unbind",
    "unflatten", "view",
}  # fmt: skip
_WEIGHING = "it weighs neighbours; expected mode='nearest'"


@dataclass(frozen=True)
class Terms:
    """The numbers of powers of two in a scale of norms and in a weight of other layers."""

    norm: int
    filter: int


def module_form(module: nn.Module, terms: Terms) -> nn.Module:
    """The module to call instead; itself where it multiplies nothing.

    Raises:
        RefusedError: the module has no form without a multiplication.
    """
    kind = type(module)
    if kind in _ADDERS:
        return _adder(module, terms)
    if isinstance(module, _FREE_MODULES):
        return module
    check_plain(module)
    if isinstance(module, _BatchNorm):
        if not is_foldable(module):
            raise RefusedError(f"{kind.__name__} divides by statistics of its input")
        form = ShiftAddNorm2d if isinstance(module, nn.BatchNorm2d) else ShiftAddNorm1d
        return form.from_norm(module, terms=terms.norm)
    rule = _MODULE_RULES.get(kind.__name__)
    if rule is None or not kind.__module__.startswith(("torch.nn.", "timm.layers.")):
        raise RefusedError(f"{kind.__name__} multiplies, or may")
    return rule(module, terms)


def _adder(layer: nn.Module, terms: Terms) -> nn.Module:
    if isinstance(layer.norm, _BatchNorm):
        if not is_foldable(layer.norm):
            raise RefusedError("its norm has no fixed statistics, or forward hooks")
        form = ShiftAddNorm1d if isinstance(layer, AdderLinear) else ShiftAddNorm2d
        layer.norm = form.from_norm(layer.norm, terms=terms.norm)
    elif layer.norm is not None and not isinstance(layer.norm, (ShiftAddNorm1d, ShiftAddNorm2d)):
        raise RefusedError(f"its norm, {type(layer.norm).__name__}, divides by statistics")
    return layer


def _average_pool(module: Any, terms: Terms) -> nn.Module:
    check_windows(module)
    return ShiftAddAvgPool2d(module.kernel_size, module.stride, module.padding, terms=terms.norm)


def _upsample(module: nn.Upsample, terms: Terms) -> nn.Module:
    if module.mode not in NEAREST:
        raise RefusedError(_WEIGHING)
    return module


_MODULE_RULES: dict[str, Callable[[Any, Terms], nn.Module]] = {
    "Conv2d": lambda m, terms: ShiftAddConv2d(m, terms=terms.filter),
    "Conv2dSame": lambda m, terms: ShiftAddConv2d(m, terms=terms.filter),
    "Linear": lambda m, terms: ShiftAddLinear(m.weight, m.bias, terms=terms.filter),
    "LeakyReLU": lambda m, terms: ShiftAddLeakyReLU(
        torch.tensor(m.negative_slope, dtype=torch.float64, device="cpu"), terms=terms.norm
    ),
    "Upsample": _upsample,
    "PReLU": lambda m, terms: ShiftAddLeakyReLU(m.weight, terms=terms.norm),
    "AvgPool2d": _average_pool,
    "AdaptiveAvgPool2d": lambda m, terms: ShiftAddAdaptiveAvgPool2d(
        m.output_size, terms=terms.norm
    ),
}


def function_form(name: str, node: Node, constants: dict[Node, Any], terms: Terms) -> Any:
    """The module to call on the node's first computed operand instead; None where the function
    multiplies nothing.

    Args:
        name: of the function or method.
        node: its call.
        constants: the values of nodes that the network's input does not reach.

    Raises:
        RefusedError: the function has no form without a multiplication.
    """
    if _holds_results(node.target):
        return None
    if name in _FREE_FUNCTIONS or is_repetition(node):
        if node.kwargs.get("alpha", 1) != 1:
            raise RefusedError(f"{name} scales an operand by alpha")
        return None
    if name == "interpolate":
        raise RefusedError(_WEIGHING)
    if name in PRODUCTS | QUOTIENTS:
        return _scale(node, constants, terms, divides=name in QUOTIENTS)
    rule = _FUNCTION_RULES.get(name)
    if rule is None:
        raise RefusedError(f"{name} multiplies, or may")
    if len(node.all_input_nodes) > 1:
        raise RefusedError(f"{name} takes a size from its input: write it as a number")
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    return rule(terms, *node.args[1:], **options)


def _holds_results(target: Any) -> bool:
    """Whether a call makes a named tuple or a dataclass, which a network may give."""
    return isinstance(target, type) and (is_dataclass(target) or issubclass(target, tuple))


def _scale(node: Node, constants: dict[Node, Any], terms: Terms, *, divides: bool) -> nn.Module:
    known: list[Any] = [
        constants[operand] if isinstance(operand, Node) and operand in constants else operand
        for operand in node.args
    ]
    computed = [operand for operand in known if isinstance(operand, Node)]
    if len(known) != 2 or len(computed) != 1 or set(node.kwargs) - {"out"}:
        raise RefusedError("it multiplies (or divides) two computed values")
    if divides and computed[0] is not known[0]:
        raise RefusedError("it divides by a computed value")
    (factor,) = (operand for operand in known if operand is not computed[0])
    if not isinstance(factor, Tensor):
        factor = torch.tensor(float(factor), dtype=torch.float64, device="cpu")
    factor = factor.detach().double()
    return ShiftAddScale(1 / factor if divides else factor, terms=terms.norm)


def _mean(terms: Terms, dim: Any = None, keepdim: bool = False, **unknown: Any) -> nn.Module:
    if unknown:
        raise RefusedError(f"mean is given {', '.join(unknown)}")
    return ShiftAddMean(tuple(dim) if isinstance(dim, list) else dim, keepdim, terms=terms.norm)


def _of_module(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda terms, *args, **kwargs: module_form(kind(*args, **kwargs), terms)


_FUNCTION_RULES: dict[str, Callable[..., nn.Module]] = {
    "adaptive_avg_pool2d": _of_module(nn.AdaptiveAvgPool2d),
    "avg_pool2d": _of_module(nn.AvgPool2d),
    "leaky_relu": _of_module(nn.LeakyReLU),
    "mean": _mean,
}
