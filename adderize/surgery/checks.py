"""Models and layers that cannot be converted as they are, each with what to do instead."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from adderize.arguments import check_module
from adderize.errors import AdderizeError

_COMPUTING = ("forward", "_conv_forward", "_call_impl", "_slow_forward")
# What a converted layer has and torch's has not.
_ADDED = ("norm", "gradient")
_QUANTIZATION = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic")


def check_model(model: nn.Module) -> None:
    """Raise for what is not a module, and for models that something else works on already: wrapped,
    sharded, compiled, scripted or prepared to be quantized."""
    check_module(model)
    for name, module in model.named_modules():
        found = _wrapper(module)
        if found is not None:
            what, instead = found
            raise AdderizeError(f"{_label(name, module)} is {what}: {instead}")


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    ancestors = {kind.__name__ for kind in type(module).__mro__}
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "wrapped for data-parallel training", "convert the model before wrapping it"
    if ancestors & {"FSDPModule", "FullyShardedDataParallel"}:
        return "sharded (FSDP)", "convert the model before sharding it"
    if "OptimizedModule" in ancestors or getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled", "convert the model first, then torch.compile it"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted", "convert the model before torch.jit.script or torch.jit.trace"
    if ancestors & {"ObserverBase", "FakeQuantizeBase"}:
        instead = "convert the float model, then quantize it (adderize.quantize)"
        return "part of a network prepared for torch's quantization", instead
    return None


def check_layer(name: str, layer: nn.Module) -> None:
    """Raise for a layer whose weight is not a parameter of its own."""
    label = _label(name, layer)
    if is_quantized(layer):
        raise AdderizeError(
            f"{label} is quantized: convert the float model, then quantize (adderize.quantize), "
            "or leave the layer out with exclude="
        )
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        raise AdderizeError(
            f"{label} is lazy, its shape is unknown: run one forward pass before the conversion"
        )
    weight = layer._parameters.get("weight")
    if weight is None:
        raise AdderizeError(
            f"{label} computes its weight (parametrisation, weight norm or pruning): make it plain "
            "first (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
            "prune.remove), or leave the layer out with exclude="
        )
    if type(weight.data).__name__ == "DTensor":
        raise AdderizeError(f"{label} is sharded (DTensor): convert the model before sharding it")


def replaced_method(layer: nn.Module) -> str | None:
    """The method that decides what a layer computes and was replaced on the instance."""
    return next((name for name in _COMPUTING if name in vars(layer)), None)


def check_not_replaced(name: str, layer: nn.Module) -> None:
    """Raise for a layer that would go on computing by a method that was put on the instance."""
    method = replaced_method(layer)
    if method is not None:
        raise AdderizeError(
            f"{_label(name, layer)} has a {method} of its own, put on the instance, which another "
            f"class would not change: take it away first (del layer.{method})"
        )


def check_filters(name: str, layer: nn.Module) -> None:
    """Raise for a layer to convert that cannot hold an adder's filters, norm and gradient mode."""
    dtype = next(layer.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise AdderizeError(
            f"{_label(name, layer)} has {dtype} filters; expected float32 or float64: convert a "
            "float32 model and train it with torch.autocast (Lightning: precision='16-mixed' or "
            "'bf16-mixed')"
        )
    for key, parameter in layer.named_parameters(recurse=False):
        if parameter.layout is not torch.strided or _repeats(parameter):
            raise AdderizeError(
                f"{_label(name, layer)} has a {key} that no operator can change in place (expanded "
                f"or sparse): give the layer a plain one (layer.{key} = "
                f"nn.Parameter(layer.{key}.detach().to_dense().contiguous()))"
            )
    for key in _ADDED:
        if hasattr(layer, key):
            raise AdderizeError(
                f"{_label(name, layer)} has an attribute {key} of its own, which an adder's would "
                "replace: rename it, or leave the layer out with exclude="
            )


def _repeats(tensor: torch.Tensor) -> bool:
    """Whether elements of a tensor share one place in memory, as those of an expanded one do."""
    return any(
        step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's quantized convolutions or linear layers."""
    kind = type(layer)
    named = "Conv" in kind.__name__ or "Linear" in kind.__name__
    return named and kind.__module__.startswith(_QUANTIZATION)


def _label(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"
