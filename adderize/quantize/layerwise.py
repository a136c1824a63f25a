"""Layer by layer, where a network cannot be traced: each adder quantises its own input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.quantize.calibration import ValueRange, named_failures
from adderize.quantize.chains import norm_affine
from adderize.quantize.graph import why_float
from adderize.quantize.grid import Grid
from adderize.quantize.layers import Epilogue, quantized_layer


def adders_of(model: nn.Module) -> dict[str, AdderConv2d | AdderLinear]:
    """The adders that can be put into integers, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (AdderConv2d, AdderLinear)) and why_float(layer) is None
    }


def observe(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, ValueRange]:
    """The inputs of each adder that the model calls."""
    ranges: dict[str, ValueRange] = {}

    def look(name: str, inputs: Tensor, output: Tensor) -> None:
        ranges.setdefault(name, ValueRange()).update(inputs, name)

    _watch(model, {layer: name for name, layer in adders_of(model).items()}, look, batches)
    return ranges


def replace(model: nn.Module, grids: Mapping[str, Grid]) -> nn.Module:
    """Put the named adders into integers, in place; returns the model, or its one layer's form."""
    layers = adders_of(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, grid in grids.items():
        if name not in layers:
            raise AdderizeError(f"the model has no adder {name} to put into integers")
        norm = layers[name].norm
        gain, offset = norm_affine(layers[name], [] if norm is None else [norm])
        made[layers[name]] = quantized_layer(layers[name], grid, Epilogue(gain, offset)).eval()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in made:
                setattr(parent, name, made[child])
    return made.get(model, model)


def layer_outputs(model: nn.Module, names: Iterable[str], inputs: Tensor) -> dict[str, Tensor]:
    """What the first call of each named layer gives, for a few images."""
    found: dict[str, Tensor] = {}

    def look(name: str, inputs: Any, output: Tensor) -> None:
        found.setdefault(name, output)

    _watch(model, {model.get_submodule(name): name for name in names}, look, [inputs])
    return found


def _watch(
    model: nn.Module,
    names: Mapping[nn.Module, str],
    look: Callable[[str, Tensor, Tensor], None],
    batches: Iterable[Tensor],
) -> None:
    """Run a model and show a function each call of the named layers: name, input, output."""

    def hook(layer: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
        look(names[layer], next(iter((*args, *kwargs.values()))), output)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in names]
    try:
        for inputs in batches:
            with named_failures(f"a calibration batch of shape {tuple(inputs.shape)}"):
                model(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
