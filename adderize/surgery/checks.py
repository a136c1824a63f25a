"""Models and layers that cannot be converted as they are, each with what to do instead."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from adderize.errors import AdderizeError


def check_model(model: nn.Module) -> None:
    """Raise for wrapped, sharded, compiled or scripted models."""
    if not isinstance(model, nn.Module):
        raise AdderizeError(f"got a {type(model).__name__}; expected a torch.nn.Module")
    for name, module in model.named_modules():
        found = _wrapper(module)
        if found is not None:
            what, instead = found
            raise AdderizeError(f"{_label(name, module)} is {what}: {instead}")


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "wrapped for data parallel training", "convert the model before wrapping it"
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    if any(kind.startswith("torch.distributed") and "FS" in kind for kind in kinds) or any(
        kind.endswith(".FullyShardedDataParallel") for kind in kinds
    ):
        return "sharded (FSDP)", "convert the model before sharding it"
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    if compiled or any(kind.endswith(".OptimizedModule") for kind in kinds):
        return "compiled", "convert the model first, then torch.compile it"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted", "convert the model before torch.jit.script or torch.jit.trace"
    return None


def check_layer(name: str, layer: nn.Module) -> None:
    """Raise for a layer chosen for conversion whose filters are no plain float tensor."""
    label = _label(name, layer)
    if "quantized" in type(layer).__module__ or ".ao." in type(layer).__module__:
        raise AdderizeError(
            f"{label} is quantised or prepared for it: convert the float model, then quantise "
            "(adderize.quantize), or leave the layer out with exclude="
        )
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        raise AdderizeError(
            f"{label} is lazy, its shape is unknown: run one forward pass before the conversion"
        )
    if "weight" not in layer._parameters:
        raise AdderizeError(
            f"{label} computes its weight (parametrisation, weight norm or pruning): make it plain "
            "first (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
            "prune.remove), or leave the layer out with exclude="
        )
    dtype = layer._parameters["weight"].dtype  # type: ignore[union-attr]
    if dtype not in (torch.float32, torch.float64):
        raise AdderizeError(
            f"{label} has {dtype} filters; expected float32 or float64. Convert before model.half()"
            " and train with torch.autocast (Lightning: precision='16-mixed' or 'bf16-mixed')"
        )


def is_quantized(layer: nn.Module) -> bool:
    return "quantized" in type(layer).__module__ or ".ao." in type(layer).__module__


def _label(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"
