"""Learning curves of the ablation: gradient and learning rate of the filters (the paper's
figure 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adderize.tables import Table
from recipes.ablation import PAPER
from recipes.figures import style
from recipes.figures.runs import ABLATION, Run

_GRADIENTS = {"full": "full-precision gradient", "sign": "sign gradient"}
_RATES = {"alr": "adaptive rate", "ilr": "increased rate"}
_COLOURS = (style.BLUE, style.SKY, style.RED, style.ORANGE)
_LEAST_ERROR = 0.01


def draw(cells: Sequence[Sequence[Run]]) -> tuple[Figure, str]:
    """Mean over seeds and their range; the last point is measured with recalibrated norms."""
    figure = Figure(figsize=(style.WIDTH, 3.6), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for (gradient, rate), runs, colour in zip(ABLATION, cells, _COLOURS, strict=True):
        label = f"{_GRADIENTS[gradient]}, {_RATES[rate]}"
        line = {"color": colour, "linestyle": "-" if rate == "alr" else "--", "label": label}
        losses = history(runs, "train/loss")
        errors = np.maximum(100 - history(runs, "val/top1"), _LEAST_ERROR)
        for axes, values in ((loss, losses), (error, errors)):
            epochs = np.arange(1, values.shape[1] + 1)
            axes.plot(epochs, values.mean(0), **line)
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
        final = np.maximum([100 - run.top1 for run in runs], _LEAST_ERROR)
        error.plot(epochs[-1] + 0.3, final.mean(), "o", color=colour, clip_on=False)
    for axes in (loss, error):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("epoch")
    loss.set_ylabel("training loss, nats")
    error.set_ylabel("test error, % (dots: norms recalibrated)")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure, _summary(cells)


def history(runs: Sequence[Run], metric: str) -> NDArray[np.float64]:
    """(runs, epochs)"""
    rows = [[epoch[metric] for epoch in run.metrics["history"]] for run in runs]
    return np.array(rows, dtype=np.float64)


def _summary(cells: Sequence[Sequence[Run]]) -> str:
    rows = []
    for (gradient, rate), runs in zip(ABLATION, cells, strict=True):
        top1 = np.array([run.top1 for run in runs])
        rows.append([
            f"{_GRADIENTS[gradient]}, {_RATES[rate]}",
            ", ".join(str(run.seed) for run in runs),
            ", ".join(f"{value:.2f}" for value in top1),
            f"{top1.mean():.2f}",
            f"{PAPER[gradient, rate]:.2f}",
        ])  # fmt: skip
    header = ["filters' gradient and rate", "seeds", "test top-1, %", "mean", "paper, 50 epochs"]
    epochs = cells[0][0].epochs
    table = Table(header, rows, texts=1).markdown()
    return f"{table}\n\nAfter {epochs:g} epochs, norms recalibrated."
