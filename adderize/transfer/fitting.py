"""Filters of one adder, fitted to what its teacher gives on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.transfer.features import Features

# Of Adam at the start, in deviations of the inputs.
_RATE = 0.1


def fit_filters(
    layer: nn.Module,
    chunks: Iterable[Sequence[Features]],
    count: int,
    *,
    steps: int,
    share: float,
    generator: torch.Generator,
    advance: Callable[[], object],
) -> None:
    """Minimise the mean squared difference from the targets over a layer's filters, in place.

    Outputs and targets are standardised channel by channel, as the batch norm behind them would:
    the loss of a channel is twice 1 - its correlation. Adam, at a rate that falls from a tenth of
    the inputs' deviation to 0 along a half cosine.

    Args:
        layer: without norm and bias, with the gradient ``"sign"``.
        chunks: the images in parts that fit the memory, in each of which an equal share of the
            steps is made.
        count: number of chunks.
        steps: number of Adam steps.
        share: fraction of the images in one step.
        generator: a CPU generator, which picks the images of each step.
        advance: called after each step.

    Raises:
        AdderizeError: the loss is not finite.
    """
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    optimizer = torch.optim.Adam([weight], lr=1.0)
    done = 0
    peak = 0.0
    for number, features in enumerate(chunks):
        if not number:
            peak = _RATE * float(torch.stack([f.inputs.std() for f in features]).mean())
        if not features:  # of images for which the layer is not called
            continue
        sizes = torch.tensor(
            [float(f.targets.numel()) for f in features], dtype=torch.float32, device="cpu"
        )
        standardised = [_standardised(f.targets) for f in features]
        for step in range(done, steps * (number + 1) // count):
            optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
            entry = int(torch.multinomial(sizes, 1, generator=generator))
            inputs, targets = features[entry].inputs, standardised[entry]
            rows = max(2, round(len(inputs) * share))
            picked = torch.randint(len(inputs), (rows,), generator=generator, device="cpu")
            picked = picked.to(inputs.device)
            with torch.enable_grad():
                outputs = _standardised(layer(inputs[picked]))
                loss = (outputs - targets[picked]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()
        done = steps * (number + 1) // count
    if not bool(weight.isfinite().all()):
        raise AdderizeError("the reconstruction diverged: the images give NaN or infinity")


def _standardised(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 of each channel; channels without a variation are 0."""
    over = [0, *range(2, values.ndim)]
    centred = values - values.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    scale = torch.where(variance > 0, variance, 1.0).rsqrt()
    return centred * scale
