"""What goes through a model's layers: ranges, means and deviations, over batches of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adderize.evaluation import device_of, evaluation, first_input
from adderize.layers import Adder, AdderLinear, pads_with_zeros
from adderize.progress import steps

LAYERS = (_ConvNd, nn.Linear, AdderLinear)
_BATCH = 64
_ROWS_FOR_CORRELATION = 4096
_VALUES_AT_ONCE = 2**22


class Measured:
    """Accumulates over calls; sums are float64.

    Attributes:
        min, max: the range of the input, with the zeros of a padding; NaN where it holds one.
        correlation: mean correlation between the output's channels, over the first call.
        highest: (C,), the maximum of each output channel.
    """

    def __init__(self) -> None:
        self.min, self.max = math.inf, -math.inf
        self.count = 0
        self.sums = self.squares = self.shift = self.highest = torch.zeros(
            0, dtype=torch.float64, device="cpu"
        )
        self.correlation: float | None = None

    def add_input(self, x: Tensor, padded: bool) -> None:
        low, high = (value.item() for value in x.aminmax())
        if padded:
            low, high = min(low, 0.0), max(high, 0.0)
        self.min = low if math.isnan(low) else min(self.min, low)
        self.max = high if math.isnan(high) else max(self.max, high)

    def add_output(self, y: Tensor) -> None:
        """Take in outputs y, (rows, C)."""
        channels = y.shape[1]
        if not self.count:
            self.sums, self.squares = torch.zeros(2, channels, dtype=torch.float64, device=y.device)
            self.highest = torch.full((channels,), -math.inf, dtype=y.dtype, device=y.device)
            self.shift = y.mean(0, dtype=torch.float64)
            self.correlation = _correlation(y)
        self.count += len(y)
        self.highest = torch.maximum(self.highest, y.amax(0))
        for rows in y.split(max(_VALUES_AT_ONCE // channels, 1)):
            values = rows.double() - self.shift
            self.sums += values.sum(0)
            self.squares += values.square().sum(0)

    @property
    def means(self) -> Tensor:
        """The mean of each output channel, (C,)."""
        return self.shift + self.sums / self.count

    @property
    def variances(self) -> Tensor:
        """The variance of each output channel, (C,)."""
        return (self.squares / self.count - (self.sums / self.count).square()).clamp(min=0)

    @property
    def mean(self) -> float:
        return float(self.means.mean())

    @property
    def std(self) -> float:
        """The standard deviation of all outputs, whatever their channel."""
        return float((self.variances.mean() + self.means.var(correction=0)).sqrt())


def _correlation(values: Tensor) -> float | None:
    """The mean over all pairs of channels; None for one channel, or where one is constant."""
    rows, channels = values.shape
    values = values[:: math.ceil(rows / _ROWS_FOR_CORRELATION)].double()
    deviations = values.std(0, correction=0)
    if channels < 2 or len(values) < 2 or not bool((deviations > 0).all()):
        return None
    standardised = (values - values.mean(0)) / deviations
    together = standardised.mean(1).var(correction=0)
    return float((channels * together - 1) / (channels - 1))


@torch.no_grad()
def measure(model: nn.Module, images: Tensor) -> dict[nn.Module, Measured]:
    """Every convolution, linear layer, adder and norm with channels, in evaluation mode.

    The outputs of an adder are taken before the norm that it may own.
    """
    found: dict[nn.Module, Measured] = {}
    with ExitStack() as hooks, evaluation(model):
        for module in model.modules():
            if isinstance(module, LAYERS):
                _watch_layer(module, found, hooks)
            elif isinstance(module, (_NormBase, nn.GroupNorm)):
                _watch_outputs(module, module, found, hooks)
        for batch in steps(batches_of(model, images), "measuring"):
            model(batch)
    return found


def batches_of(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Split the images into batches of about equal size, on the model's device."""
    device = device_of(model)
    return images.to(device).tensor_split(math.ceil(len(images) / _BATCH))


def _watch_layer(layer: nn.Module, found: dict[nn.Module, Measured], hooks: ExitStack) -> None:
    padded = pads_with_zeros(layer)

    def see_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(layer, Measured()).add_input(first_input(args, kwargs), padded)

    hooks.enter_context(layer.register_forward_pre_hook(see_input, with_kwargs=True))
    own = layer.norm if isinstance(layer, Adder) else None
    if own is None:
        _watch_outputs(layer, layer, found, hooks)
    else:

        def see_output(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[layer].add_output(_rows(inputs[0], module))

        hooks.enter_context(own.register_forward_pre_hook(see_output))


def _watch_outputs(
    module: nn.Module, key: nn.Module, found: dict[nn.Module, Measured], hooks: ExitStack
) -> None:
    def see(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        found.setdefault(key, Measured()).add_output(_rows(output, module))

    hooks.enter_context(module.register_forward_hook(see))


def _rows(output: Tensor, module: nn.Module) -> Tensor:
    """The output as (rows, C)."""
    if isinstance(module, (nn.Linear, AdderLinear)):
        return output.reshape(-1, output.shape[-1])
    unbatched = isinstance(module, _ConvNd) and output.ndim == len(module.kernel_size) + 1
    return output.movedim(0 if unbatched else 1, -1).flatten(0, -2)
