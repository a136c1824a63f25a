"""Norms of the filters' gradients at the first iterations, LeNet-5-BN as a CNN and as an AdderNet
(the paper's table 4)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

from adderize import adderize, scale_adder_gradients_
from adderize.data import Dataset, load_mnist
from adderize.data.normalisation import normalised
from adderize.layers import Adder
from adderize.models import lenet5_bn
from adderize.tables import Table
from recipes.figures import style
from recipes.mnist import LAYERS

_ITERATIONS = 20
_BATCH = 256
_Norms = dict[str, NDArray[np.float64]]


class Series(NamedTuple):
    adder: bool
    adaptive: bool
    colour: str
    line: str


SERIES = {
    "CNN": Series(False, False, style.CNN, "-"),
    "AdderNet without the adaptive rate": Series(True, False, style.ADDER, "--"),
    "AdderNet with it": Series(True, True, style.ADDER, "-"),
}


def draw(data: str | None, seed: int = 0) -> tuple[Figure, str]:
    """A panel a layer; and the norms of the first iteration as a table."""
    images = load_mnist(data)
    norms = {
        name: gradient_norms(images, series.adder, series.adaptive, seed)
        for name, series in SERIES.items()
    }
    layers = list(norms["CNN"])
    figure = Figure(figsize=(style.WIDTH, 2.8), layout="constrained")
    for axes, layer in zip(figure.subplots(1, len(layers), sharey=True), layers, strict=True):
        for name, series in SERIES.items():
            values = norms[name][layer]
            iterations = np.arange(1, len(values) + 1)
            axes.plot(iterations, values, series.line, color=series.colour, label=name)
        axes.set_yscale("log")
        axes.set_xticks([1, 10, 20])
        axes.set_title(layer)
        axes.set_xlabel("iteration")
    figure.axes[0].set_ylabel("L2 norm of the gradient")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return figure, _summary(norms)


def gradient_norms(images: Dataset, adder: bool, adaptive: bool, seed: int) -> _Norms:
    """The norm of each layer's filter gradient as the optimizer sees it, an iteration at a time.

    LeNet-5-BN from its initialisation, trained by the paper's protocol meanwhile.
    """
    seed_everything(seed, verbose=False)
    model: nn.Module = lenet5_bn()
    if adder:
        model = adderize(model, **(LAYERS["adder"] or {}))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    kinds = nn.Conv2d | nn.Linear | Adder
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    norms: dict[str, list[float]] = {name: [] for name in layers}
    for pixels, labels in islice(_batches(images, seed), _ITERATIONS):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        if adaptive:
            scale_adder_gradients_(model, eta=0.2)
        for name, layer in layers.items():
            assert layer.weight.grad is not None
            norms[name].append(float(layer.weight.grad.norm()))
        optimizer.step()
    return {name: np.array(values) for name, values in norms.items()}


def _batches(images: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images.train.labels), generator=torch.Generator().manual_seed(seed))
    for indices in order.split(_BATCH):
        pixels = normalised(images.train.images[indices], images.mean, images.std)
        yield pixels, images.train.labels[indices]


def _summary(norms: dict[str, _Norms]) -> str:
    rows = []
    for layer in norms["CNN"]:
        first = [norms[series][layer][0] for series in SERIES]
        rows.append([layer, *(f"{value:.4g}" for value in first), f"{first[0] / first[1]:.3g}"])
    header = ["layer", *SERIES, "CNN / AdderNet"]
    table = Table(header, rows, texts=1).markdown()
    return f"{table}\n\nL2 norms of the filters' gradients at the first iteration, batch {_BATCH}."
