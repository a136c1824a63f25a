"""Draw the AdderNet paper's figures from your own MNIST runs, as PNG and SVG, with their numbers.

features    the 2-D features of LeNet++ on the test set, CNN beside AdderNet
filters     first-layer filters of LeNet-5-BN, CNN beside AdderNet
weights     histograms of all filters with Laplace and Gaussian fits
curves      learning curves of the ablation: gradient and rate of the filters
gradients   gradient norms at the first iterations, with and without the adaptive rate
slopes      what a filter value inside and outside the range of its inputs does
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adderize.errors import AdderizeError
from recipes import mnist
from recipes.figures.runs import (
    ABLATION,
    Run,
    Wanted,
    best_match,
    comparable,
    find_runs,
    missing_runs,
    network,
)
from recipes.run import command, make_parser, positive_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LENET = (network("lenet5_bn", "cnn"), ABLATION["full", "alr"])
# With nothing but a classifier behind its two features the CNN diverges at the protocol's 0.1.
_LENET_PLUS_PLUS = (
    network("lenet_plus_plus", "cnn", lr="0.01"),
    network("lenet_plus_plus", "adder"),
)
# What each figure is drawn from.
FIGURES: dict[str, tuple[Wanted, ...]] = {
    "features": _LENET_PLUS_PLUS,
    "filters": _LENET,
    "weights": _LENET,
    "curves": tuple(ABLATION.values()),
    "gradients": (),
    "slopes": (),
}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("figures", __doc__)
    parser.add_argument("figures", nargs="*", type=_figure, metavar="FIGURE", help="default: all")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="runs of recipes.mnist, anywhere below; the longest one that fits is taken",
    )
    parser.add_argument("--train", action="store_true", help="make the missing runs first")
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=10,
        help="of the runs that --train makes (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="DIR|embedded", help="MNIST, as for recipes.mnist")
    parser.add_argument("--num-threads", type=positive_int, metavar="N", help="CPU threads")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/figures"), metavar="DIR",
        help="gets FIGURE.png, FIGURE.svg and FIGURE.md with its numbers",
    )  # fmt: skip
    return parser


def _figure(name: str) -> str:
    if name not in FIGURES:
        raise argparse.ArgumentTypeError(
            f"{name!r} is not a figure; expected some of {', '.join(FIGURES)}"
        )
    return name


def make(argv: Sequence[str] | None = None) -> None:
    """Draw the figures that were asked for, after the runs that they lack.

    Raises:
        AdderizeError: missing packages, runs or data, runs that do not compare, a folder that
            cannot be written.
    """
    arguments = _parser().parse_args(argv)
    absent = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if absent:
        raise AdderizeError(f"figures need {' and '.join(absent)}: pip install 'adderize[plot]'")
    from recipes.figures import style

    names = arguments.figures or list(FIGURES)
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    wanted = {run.folder: run for name in names for run in FIGURES[name]}.values()
    runs = find_runs(arguments.runs)
    missing = [run for run in wanted if best_match(run, runs) is None]
    if "curves" in names and not comparable(FIGURES["curves"], runs):
        finished = {run.folder.resolve() for run in runs}
        missing += [
            run
            for run in FIGURES["curves"]
            if run not in missing and (arguments.runs / run.folder).resolve() not in finished
        ]
    if missing and not arguments.train:
        raise missing_runs(missing, arguments.runs)
    for run in missing:
        _train(run, arguments)
    runs = find_runs(arguments.runs)
    for name in names:
        with style.styled():
            figure, numbers = _draw(name, runs, arguments.data)
            paths = style.save(figure, numbers, arguments.output, name)
        print(f"## {name}\n\n{numbers}\n", flush=True)
        print("wrote " + ", ".join(map(str, paths)), file=sys.stderr)


def _train(wanted: Wanted, arguments: argparse.Namespace) -> None:
    command = [*wanted.command_line(arguments.runs), "--epochs", str(arguments.epochs)]
    if arguments.data:
        command += ["--data", arguments.data]
    if arguments.num_threads:
        command += ["--num-threads", str(arguments.num_threads)]
    mnist.train_for(command, arguments.runs / wanted.folder)


def _draw(name: str, runs: Sequence[Run], data: str | None) -> tuple[Figure, str]:
    from recipes.figures import curves, filter_slopes, filters, gradients, lenet_features, weights

    if name == "curves":
        cells = comparable(FIGURES[name], runs)
        if not cells:
            raise AdderizeError("the runs of the ablation were not trained alike: see --epochs")
        return curves.draw(cells)
    if name == "gradients":
        return gradients.draw(data)
    if name == "slopes":
        return filter_slopes.draw()
    cnn, adder = (best_match(wanted, runs) for wanted in FIGURES[name])
    assert cnn is not None and adder is not None
    if name == "features":
        return lenet_features.draw(cnn, adder, data)
    return filters.draw(cnn, adder) if name == "filters" else weights.draw(cnn, adder)


main = command("figures", make)


if __name__ == "__main__":
    sys.exit(main())
