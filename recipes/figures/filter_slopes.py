"""What a filter value of an adder does to its input: a slope, by where it lies among the inputs."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from adderize.tables import Table
from adderize.transfer.slopes import Slopes
from recipes.figures import style

_SLOPES = (-1.0, -0.5, 0.0, 0.5, 1.0)
_COLOURS = (style.BLUE, style.SKY, style.BLACK, style.ORANGE, style.RED)
_VALUES = 4000


def draw() -> tuple[Figure, str]:
    """Inputs as behind a batch norm and a ReLU: three taps with the lines that fit them best, and
    the slope of every filter value; as a table the filter values of some slopes."""
    inputs = torch.randn(_VALUES, 1, generator=torch.Generator().manual_seed(0)).relu()
    x = inputs[:, 0].double().numpy()
    wanted = torch.tensor([_SLOPES], dtype=torch.float64)
    values = Slopes(inputs).inverse(wanted)[0].numpy()
    figure = Figure(figsize=(style.WIDTH, 2.8), layout="constrained")
    taps, slopes = figure.subplots(1, 2)
    along = np.linspace(0, x.max(), 200)
    for w, slope, colour in zip(values, _SLOPES, _COLOURS, strict=True):
        output = -np.abs(x - w)
        label = f"w = {w:.2f}: slope {slope:g}"
        taps.plot(along, -np.abs(along - w) - output.mean(), color=colour, label=label)
        taps.plot(along, slope * (along - x.mean()), ":", color=colour)
    taps.set_xlabel("input x")
    taps.set_ylabel("-|x - w|, centred")
    taps.legend(fontsize=7)
    among = np.linspace(-1, x.max() + 1, 300)
    slopes.plot(among, [_fitted(x, w) for w in among], color=style.ADDER)
    slopes.hist(x, 40, weights=np.full(len(x), 2 / len(x)), bottom=-1, color="#CCCCCC")
    slopes.set_xlabel("filter value w, and where the inputs lie (grey)")
    slopes.set_ylabel("slope")
    return figure, _summary(x, values)


def _fitted(x: np.ndarray, w: float) -> float:
    return float(np.polyfit(x, -np.abs(x - w), 1)[0])


def _summary(x: np.ndarray, values: np.ndarray) -> str:
    rows = [
        [f"{slope:g}", f"{w:.3f}", f"{np.corrcoef(x, -np.abs(x - w))[0, 1]:.3f}"]
        for slope, w in zip(_SLOPES, values, strict=True)
    ]
    return Table(["slope", "filter value", "correlation with the input"], rows).markdown()
