"""The two features of LeNet++ on the test set, CNN beside AdderNet (the paper's figure 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from adderize.data import load_mnist
from adderize.data.normalisation import normalised
from adderize.tables import Table
from recipes.figures import style
from recipes.figures.runs import Run

_Points = NDArray[np.float64]
_BATCH = 500


@dataclass(frozen=True)
class Geometry:
    """How the classes lie in the plane; accuracies in percent.

    Attributes:
        by_network: top-1 of the network itself.
        by_centre: of the nearest class mean.
        by_angle: of the class mean with the nearest direction, seen from the origin.
        elongation: the deviation of a class away from the origin, divided by that across (median
            over classes): 1 for round clusters, large for rays.
    """

    by_network: float
    by_centre: float
    by_angle: float
    elongation: float


def draw(cnn: Run, adder: Run, data: str | None) -> tuple[Figure, str]:
    """A point for each test image; and whether centres or angles tell the classes apart."""
    images = load_mnist(data, 28)
    figure = Figure(figsize=(style.WIDTH, 3.9), layout="constrained")
    found: dict[str, Geometry] = {}
    for axes, (name, run) in zip(
        figure.subplots(1, 2), {"CNN": cnn, "AdderNet": adder}.items(), strict=True
    ):
        points, predicted = features(
            run.model(), normalised(images.test.images, images.mean, images.std)
        )
        labels = images.test.labels.numpy()
        found[name] = geometry(points, labels, predicted)
        _scatter(axes, points, labels)
        axes.set_title(f"{name}, test top-1 {found[name].by_network:.2f} %")
    return figure, _summary(found, {"CNN": cnn, "AdderNet": adder})


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> tuple[_Points, NDArray[np.int64]]:
    """The inputs (N, 2) of the last layer, and the predicted classes (N,)."""
    seen: list[Tensor] = []
    last = model.get_submodule("fc2")
    with last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        predicted = torch.cat([model(batch).argmax(1) for batch in images.split(_BATCH)])
    points: _Points = torch.cat(seen).double().numpy()
    return points, predicted.numpy()


def geometry(points: _Points, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Geometry:
    classes = np.unique(labels)
    centres = np.stack([points[labels == c].mean(0) for c in classes])
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    cosines = _unit(points) @ _unit(centres).T
    away = _unit(centres)
    across = np.stack([-away[:, 1], away[:, 0]], axis=1)
    spreads = [
        (points[labels == c] @ axis).std()
        for i, c in enumerate(classes)
        for axis in (away[i], across[i])
    ]
    ratios = np.array(spreads).reshape(-1, 2)
    return Geometry(
        by_network=100 * float((predicted == labels).mean()),
        by_centre=100 * float((classes[distances.argmin(1)] == labels).mean()),
        by_angle=100 * float((classes[cosines.argmax(1)] == labels).mean()),
        elongation=float(np.median(ratios[:, 0] / ratios[:, 1])),
    )


def _unit(points: _Points) -> _Points:
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    units: _Points = points / np.maximum(lengths, np.finfo(np.float64).tiny)
    return units


def _scatter(axes: Any, points: _Points, labels: NDArray[np.int64]) -> None:
    for digit, colour in enumerate(style.TEN_CLASSES):
        own = points[labels == digit]
        axes.scatter(*own.T, s=3, color=colour, linewidths=0, alpha=0.6, rasterized=True)
        axes.annotate(
            str(digit), np.median(own, axis=0), ha="center", va="center", fontsize=10,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour},
        )  # fmt: skip
    axes.plot(0, 0, "+", color=style.BLACK, markersize=10)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("feature 1 (+: the origin)")
    axes.set_ylabel("feature 2")


def _summary(found: dict[str, Geometry], runs: dict[str, Run]) -> str:
    rows = [
        [
            name,
            f"{runs[name].epochs:g}",
            f"{g.by_network:.2f}",
            f"{g.by_centre:.2f}",
            f"{g.by_angle:.2f}",
            f"{g.elongation:.2f}",
        ]
        for name, g in found.items()
    ]
    header = ["", "epochs", "network, %", "nearest centre, %", "nearest angle, %", "elongation"]
    table = Table(header, rows, texts=1).markdown()
    return (
        f"{table}\n\nTop-1 on the test images by the network, by the "
        "nearest class mean and by the direction of the class means alone; elongation: deviation "
        "of a class away from the origin over that across, median over the classes."
    )
