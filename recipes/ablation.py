"""The AdderNet paper's ablation: full-precision or sign gradient, adaptive or increased rate.

python -m recipes.ablation --data DIR --epochs 10 --seeds 0 1 2 --output DIR

LeNet-5-BN on MNIST, one run of recipes.mnist for each cell and seed (Chen et al., CVPR 2020,
section 4.4). Finished runs in the output folder are read, interrupted ones continued:

OUTPUT/{gradient}-{rate}-{seed}/    the run
OUTPUT/ablation.json                the table
OUTPUT/curves.csv                   the learning curves of all runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adderize import AdderizeError
from adderize.tables import Table, csv_text
from adderize.whole_files import write_whole
from recipes import mnist, run
from recipes.run.monitors import History, TrainingDiverged

# Test top-1 in percent after 50 epochs, by gradient and rate.
PAPER = {
    ("full", "alr"): 99.40,
    ("full", "ilr"): 98.99,
    ("sign", "alr"): 97.99,
    ("sign", "ilr"): 97.72,
}
DIVERGED = "diverged.json"
# The paper's test set is also the recipe's validation set.
CURVES = {
    "epoch": "epoch",
    "train_loss": "train/loss",
    "train_top1": "train/top1",
    "test_loss": "val/loss",
    "test_top1": "val/top1",
}


@dataclass(frozen=True)
class Trial:
    """One training: its epochs, and its test top-1 in percent, None where it diverged."""

    seed: int
    top1: float | None
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Cell:
    """The runs of one gradient and rate.

    Attributes:
        paper: what the paper prints, top-1 in percent.
    """

    gradient: str
    rate: str
    paper: float
    trials: Sequence[Trial]

    @property
    def top1(self) -> list[float]:
        return [trial.top1 for trial in self.trials if trial.top1 is not None]

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.top1) if self.top1 else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample; None for fewer than two runs."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


def _parser() -> argparse.ArgumentParser:
    parser = run.make_parser("ablation", __doc__)
    parser.add_argument("--data", metavar="DIR|embedded", help="as for recipes.mnist")
    default = "(default: %(default)s)"
    parser.add_argument(
        "--epochs", type=run.positive_int, default=50, help=f"of every run {default}"
    )
    parser.add_argument(
        "--batch-size", type=run.positive_int, default=256, help=f"images a step {default}"
    )
    parser.add_argument(
        "--seeds",
        type=run.seed,
        nargs="+",
        default=[0, 1, 2],
        metavar="SEED",
        help="of the runs of a cell (default: 0 1 2)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs") / "ablation", metavar="DIR")
    parser.add_argument("--num-threads", type=run.positive_int, metavar="N")
    parser.add_argument(
        "--max-steps", type=run.positive_int, metavar="N", help="stop every run after N steps"
    )
    return parser


def ablation(argv: Sequence[str] | None = None) -> list[Cell]:
    """All cells, trained or read; writes the table and the learning curves, prints the table.

    Raises:
        AdderizeError: bad arguments or data, or a folder that holds another run.
    """
    arguments = _parser().parse_args(argv)
    seeds = sorted(set(arguments.seeds))
    cells = [
        Cell(gradient, rate, paper, [_run(arguments, gradient, rate, seed) for seed in seeds])
        for (gradient, rate), paper in PAPER.items()
    ]
    _write_curves(arguments.output / "curves.csv", cells)
    run.write_json(arguments.output / "ablation.json", [_entry(cell) for cell in cells])
    steps = f", {arguments.max_steps} steps at most" if arguments.max_steps else ""
    print(table(cells, f"{arguments.epochs} epochs{steps}"))
    return cells


def _run(arguments: argparse.Namespace, gradient: str, rate: str, seed: int) -> Trial:
    folder: Path = arguments.output / f"{gradient}-{rate}-{seed}"
    argv = _command_line(arguments, folder, gradient, rate, seed)
    ended = any((folder / name).exists() for name in (run.METRICS, DIVERGED))
    if ended or (folder / run.ARGUMENTS).exists():
        _check_same(folder, argv)
    if not ended:
        _train(folder, argv)
    if not (folder / run.METRICS).exists():
        return Trial(seed, None, _history(folder))
    metrics = _read_json(folder / run.METRICS)
    return Trial(seed, metrics["test.top1"], metrics["history"])


def _train(folder: Path, argv: list[str]) -> None:
    try:
        mnist.train_for(argv, folder)
    except TrainingDiverged as error:
        print(error, file=sys.stderr, flush=True)
        run.write_json(folder / DIVERGED, {"error": str(error)})


def _command_line(
    arguments: argparse.Namespace, folder: Path, gradient: str, rate: str, seed: int
) -> list[str]:
    values = {
        "--data": arguments.data,
        "--epochs": arguments.epochs,
        "--batch-size": arguments.batch_size,
        "--gradient": gradient,
        "--rate": rate,
        "--seed": seed,
        "--max-steps": arguments.max_steps,
        "--num-threads": arguments.num_threads,
        "--output": folder,
    }
    return [str(word) for item in values.items() if item[1] is not None for word in item]


def _check_same(folder: Path, argv: Sequence[str]) -> None:
    parser = mnist.make_parser()
    saved = _read_json(folder / run.ARGUMENTS)
    # What a run of an earlier version does not name had its default.
    run.check_same(folder, vars(parser.parse_args([])) | saved, parser.parse_args(argv))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdderizeError(f"cannot read {path}: {error}") from error


def _history(folder: Path) -> list[dict[str, float]]:
    """The whole epochs of a run that diverged."""
    if not (folder / run.LAST).exists():
        return []
    callbacks = torch.load(folder / run.LAST, map_location="cpu", weights_only=True)["callbacks"]
    epochs: list[dict[str, float]] = callbacks[History.__qualname__]["epochs"]
    return epochs


def table(cells: Sequence[Cell], length: str) -> str:
    """Mean and deviation of the test top-1 in percent, beside the paper's, and each run's."""
    header = ["gradient", "rate", "test top-1, %", "deviation", "runs", "paper, %"]
    rows = Table(header, [_row(cell) for cell in cells]).text()
    return "\n".join([rows, "", f"{length}; the paper has 50 epochs.", _best(cells)])


def _row(cell: Cell) -> list[str]:
    runs = ["diverged" if trial.top1 is None else f"{trial.top1:.2f}" for trial in cell.trials]
    return [
        cell.gradient,
        cell.rate,
        "diverged" if cell.mean is None else f"{cell.mean:.2f}",
        "-" if cell.deviation is None else f"{cell.deviation:.2f}",
        " ".join(runs),
        f"{cell.paper:.2f}",
    ]


def _best(cells: Sequence[Cell]) -> str:
    """By how much the best cell leads, runs that diverged left out."""
    ranked = sorted((cell for cell in cells if cell.mean is not None), key=lambda c: -(c.mean or 0))
    if len(ranked) < 2:
        return "No two cells to compare: the others diverged."
    (first, mean), (second, next_mean) = ((cell, cell.mean or 0) for cell in ranked[:2])
    deviations = ", ".join("-" if c.deviation is None else f"{c.deviation:.2f}" for c in ranked[:2])
    return (
        f"Best: {first.gradient} {first.rate}, {mean - next_mean:.2f} points above "
        f"{second.gradient} {second.rate} (deviations {deviations})."
    )


def _entry(cell: Cell) -> dict[str, Any]:
    return {
        "gradient": cell.gradient,
        "rate": cell.rate,
        "test.top1": cell.mean,
        "deviation": cell.deviation,
        "runs": {trial.seed: trial.top1 for trial in cell.trials},
        "paper": cell.paper,
    }


def _write_curves(path: Path, cells: Sequence[Cell]) -> None:
    """One line an epoch of every run; the test columns are measured with running statistics."""
    rows = [
        [cell.gradient, cell.rate, trial.seed, *(epoch.get(key) for key in CURVES.values())]
        for cell in cells
        for trial in cell.trials
        for epoch in trial.history
    ]
    write_whole(path, csv_text(["gradient", "rate", "seed", *CURVES], rows) + "\n")


main = run.command("ablation", ablation)


if __name__ == "__main__":
    sys.exit(main())
