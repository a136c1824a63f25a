"""Histograms of the filters with Laplace and Gaussian fits (the paper's figure 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from adderize.layers import Adder
from adderize.tables import Table
from recipes.figures import style
from recipes.figures.runs import Run

_Values = NDArray[np.float64]
_FAMILIES = {"Laplace": stats.laplace, "Gaussian": stats.norm}
_LINES = (("-", 1.5), ("--", 1.0))
_BINS = 50


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit.

    Attributes:
        location, scale: the distribution's parameters.
        log_likelihood: in nats a value.
        distance: Kolmogorov-Smirnov, between the fit and the values.
    """

    location: float
    scale: float
    log_likelihood: float
    distance: float


def fit(values: _Values, family: str) -> Fit:
    """Fit ``"Laplace"`` (median and mean absolute deviation) or ``"Gaussian"`` to the values."""
    distribution = _FAMILIES[family]
    location, scale = distribution.fit(values)
    likelihood = distribution.logpdf(values, location, scale).mean()
    distance = stats.kstest(values, distribution(location, scale).cdf).statistic
    return Fit(float(location), float(scale), float(likelihood), float(distance))


def draw(cnn: Run, adder: Run) -> tuple[Figure, str]:
    """A histogram for each layer of each network; and which family fits better."""
    filters = {"CNN": _layers(cnn), "AdderNet": _layers(adder)}
    columns = len(filters["CNN"])
    figure = Figure(figsize=(style.WIDTH, 3.8), layout="constrained")
    panels = figure.subplots(2, columns)
    fits: dict[tuple[str, str], dict[str, Fit]] = {}
    for row, (name, layers) in zip(panels, filters.items(), strict=True):
        for axes, (layer, values) in zip(row, layers.items(), strict=True):
            found = {family: fit(values, family) for family in _FAMILIES}
            fits[name, layer] = found
            _histogram(axes, values, found, style.CNN if name == "CNN" else style.ADDER)
            axes.set_title(f"{name} {layer}")
            axes.set_xlabel("filter value")
        row[0].set_ylabel("density")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure, _summary(fits, filters)


def _layers(run: Run) -> dict[str, _Values]:
    kinds = nn.Conv2d | nn.Linear | Adder
    return {
        name: layer.weight.detach().double().flatten().numpy()
        for name, layer in run.model().named_modules()
        if isinstance(layer, kinds)
    }


def _histogram(axes: Axes, values: _Values, fits: dict[str, Fit], colour: str) -> None:
    axes.hist(values, _BINS, density=True, histtype="stepfilled", color=colour, alpha=0.35)
    x = np.linspace(values.min(), values.max(), 201)
    for (family, found), (line, width) in zip(fits.items(), _LINES, strict=True):
        density = _FAMILIES[family].pdf(x, found.location, found.scale)
        axes.plot(x, density, line, color=style.BLACK, linewidth=width, label=f"{family} fit")
    axes.set_yticks([])


def better(fits: dict[str, Fit]) -> tuple[str, str]:
    """The family of the higher likelihood, and that of the smaller distance."""
    return (
        max(fits, key=lambda family: fits[family].log_likelihood),
        min(fits, key=lambda family: fits[family].distance),
    )


def _summary(
    fits: dict[tuple[str, str], dict[str, Fit]], filters: dict[str, dict[str, _Values]]
) -> str:
    header = ["layer", "values", "log-likelihood, Laplace", "Gaussian", "better",
              "KS distance, Laplace", "Gaussian", "better"]  # fmt: skip
    rows = []
    for (name, layer), found in fits.items():
        laplace, gaussian = found["Laplace"], found["Gaussian"]
        likelier, closer = better(found)
        rows.append([
            f"{name} {layer}", f"{filters[name][layer].size:,}",
            f"{laplace.log_likelihood:.4f}", f"{gaussian.log_likelihood:.4f}", likelier,
            f"{laplace.distance:.4f}", f"{gaussian.distance:.4f}", closer,
        ])  # fmt: skip
    counts = []
    for name, expected in (("AdderNet", "Laplace"), ("CNN", "Gaussian")):
        winners = [better(found) for (network, _), found in fits.items() if network == name]
        wins = [sum(pair[i] == expected for pair in winners) for i in (0, 1)]
        counts.append(
            f"{expected} fits better in {wins[0]} of {len(winners)} layers of the {name} by the "
            f"likelihood, in {wins[1]} by the KS distance"
        )
    text = "; ".join(counts)
    table = Table(header, rows, texts=1).markdown()
    return f"{table}\n\nLog-likelihoods in nats a value. {text}."
