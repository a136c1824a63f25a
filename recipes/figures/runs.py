"""Finished MNIST runs, recognised by their arguments, and those that a figure still needs."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adderize import load_model, models
from adderize.errors import AdderizeError
from recipes.ablation import PAPER
from recipes.run import ARGUMENTS, METRICS

# What the arguments of older runs lack.
_DEFAULTS = {"arch": "lenet5_bn"}
_ADDER = {"layers": "adder", "gradient": "full", "rate": "alr"}


@dataclass(frozen=True)
class Wanted:
    """The arguments of `recipes.mnist` that a run must have, and the folder that it would get."""

    folder: str
    arguments: dict[str, str]

    def command_line(self, runs: Path) -> list[str]:
        options = [part for key, value in self.arguments.items() for part in (f"--{key}", value)]
        return [*options, "--output", str(runs / self.folder)]

    def matches(self, run: Run) -> bool:
        return all(str(run.arguments.get(key)) == value for key, value in self.arguments.items())


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its arguments and its metrics."""

    folder: Path
    arguments: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.arguments["seed"])

    @property
    def epochs(self) -> float:
        return float(self.metrics["epochs"])

    @property
    def top1(self) -> float:
        """On the test set, in percent."""
        return float(self.metrics["test.top1"])

    def model(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        fresh: nn.Module = getattr(models, self.arguments["arch"])()
        return load_model(fresh, self.folder / "model").eval()


def network(arch: str, layers: str, **options: str) -> Wanted:
    """A CNN or an adder network by the paper's protocol, less the options given."""
    kind = {"layers": "cnn"} if layers == "cnn" else _ADDER
    return Wanted(f"{arch}-{layers}", {"arch": arch, **kind, **options})


def _cell(gradient: str, rate: str) -> Wanted:
    """A cell of the ablation: the gradient and the learning rate of the adder filters."""
    arguments = {"arch": "lenet5_bn", "layers": "adder", "gradient": gradient, "rate": rate}
    return Wanted(f"ablation/{gradient}-{rate}-0", arguments)


ABLATION = {cell: _cell(*cell) for cell in PAPER}


def find_runs(folder: Path) -> list[Run]:
    """The finished MNIST runs anywhere below a folder."""
    found = []
    for path in sorted(folder.rglob(METRICS)):
        try:
            arguments = _DEFAULTS | json.loads((path.parent / ARGUMENTS).read_text())
            run = Run(path.parent, arguments, json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if (
            arguments["arch"] in ("lenet5_bn", "lenet_plus_plus")
            and (path.parent / "model").is_dir()
        ):
            found.append(run)
    return found


def best_match(wanted: Wanted, runs: Sequence[Run]) -> Run | None:
    """The longest training that fits, of the lowest seed."""
    fitting = [run for run in runs if wanted.matches(run)]
    return max(fitting, key=lambda run: (run.epochs, -run.seed), default=None)


def comparable(cells: Sequence[Wanted], runs: Sequence[Run]) -> list[list[Run]]:
    """For each cell its runs, one a seed, all cells trained alike; the longest such training.

    Empty where no training covers all cells.
    """
    groups: dict[tuple[Any, ...], list[list[Run]]] = defaultdict(lambda: [[] for _ in cells])
    protocol = ("epochs", "batch_size", "lr", "eta", "max_steps", "precision", "data")
    for run in runs:
        for cell, wanted in enumerate(cells):
            if wanted.matches(run):
                groups[tuple(run.arguments.get(key) for key in protocol)][cell].append(run)
    complete = [group for group in groups.values() if all(group)]
    best = max(complete, key=lambda group: (group[0][0].epochs, sum(map(len, group))), default=[])
    return [list({run.seed: run for run in cell}.values()) for cell in best]


def missing_runs(missing: Sequence[Wanted], runs: Path) -> AdderizeError:
    """The error that names the runs, and the commands that make them."""
    commands = "\n".join(
        "  python -m recipes.mnist " + shlex.join(wanted.command_line(runs)) for wanted in missing
    )
    return AdderizeError(f"runs are missing in {runs}: pass --train, or make them with\n{commands}")
