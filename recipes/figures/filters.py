"""First-layer filters of LeNet-5-BN, as a CNN and as an AdderNet (the paper's figure 3)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adderize.tables import Table
from recipes.figures import style
from recipes.figures.runs import Run

_Filters = NDArray[np.float64]


def draw(cnn: Run, adder: Run) -> tuple[Figure, str]:
    """Each network's filters on its own symmetric scale; and what they have in common."""
    filters = {"CNN": _first_layer(cnn), "AdderNet": _first_layer(adder)}
    count = len(filters["CNN"])
    figure = Figure(figsize=(style.WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(2, count)
    for row, (name, values) in zip(panels, filters.items(), strict=True):
        limit = float(np.abs(values).max())
        for index, (axes, filter_) in enumerate(zip(row, values, strict=True)):
            image = axes.imshow(filter_, cmap="PuOr", vmin=-limit, vmax=limit)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
            if index == 0:
                axes.set_ylabel(name, fontsize=11)
        figure.colorbar(image, ax=row, label="filter value")
    return figure, _summary(filters)


def _first_layer(run: Run) -> _Filters:
    """(filters, height, width)"""
    weight = run.model().get_parameter("conv1.weight").detach()
    values: _Filters = weight[:, 0].double().numpy()
    return values


def smoothness(filters: _Filters) -> float:
    """Correlation between values that are neighbours in a row or a column; 0 for noise."""
    pairs = [
        (filters[:, :, :-1].ravel(), filters[:, :, 1:].ravel()),
        (filters[:, :-1].ravel(), filters[:, 1:].ravel()),
    ]
    first, second = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(np.corrcoef(first, second)[0, 1])


def likeness(filters: _Filters, others: _Filters) -> float:
    """The mean over filters of the largest absolute correlation with one of the others."""
    standardised = []
    for values in (filters, others):
        flat = values.reshape(len(values), -1)
        flat = flat - flat.mean(1, keepdims=True)
        standardised.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    return float(np.abs(standardised[0] @ standardised[1].T).max(1).mean())


def orientations(filters: _Filters) -> list[_Filters]:
    """The filters, then the same turned and mirrored: as smooth, but of other patterns."""
    return [
        np.rot90(mirrored, turns, axes=(1, 2))
        for mirrored in (filters, filters[:, :, ::-1])
        for turns in range(4)
    ]


def _summary(filters: dict[str, _Filters]) -> str:
    rows = [
        [
            name,
            f"{values.min():.3g} to {values.max():.3g}",
            f"{values.std():.3g}",
            f"{smoothness(values):.2f}",
        ]
        for name, values in filters.items()
    ]
    likenesses = [likeness(turned, filters["CNN"]) for turned in orientations(filters["AdderNet"])]
    header = ["", "range", "deviation", "correlation of neighbours"]
    table = Table(header, rows, texts=1).markdown()
    return (
        f"{table}\n\nAn adder filter's largest absolute correlation with a filter of the CNN is "
        f"{likenesses[0]:.2f} on average; for the same filters turned and mirrored in the seven "
        f"other ways {min(likenesses[1:]):.2f} to {max(likenesses[1:]):.2f}."
    )
