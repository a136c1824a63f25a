"""Command line options that every recipe has, and the files that preset them."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from adderize.errors import AdderizeError

CONFIGS = Path(__file__).parents[1] / "configs"


_Number = TypeVar("_Number", int, float)


def _checked(
    kind: type[_Number], fits: Callable[[_Number], bool], expected: str
) -> Callable[[str], _Number]:
    """An option's type: numbers that fit."""

    def read(text: str) -> _Number:
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{value} is not {expected}")
        return value

    read.__name__ = kind.__name__  # what argparse calls it where the text is no number
    return read


positive_int = _checked(int, lambda n: n >= 1, "a positive integer")
non_negative_int = _checked(int, lambda n: n >= 0, "an integer from 0 on")
positive_float = _checked(float, lambda x: 0 < x < math.inf, "a positive number")
non_negative_float = _checked(float, lambda x: 0 <= x < math.inf, "a number from 0 on")
fraction = _checked(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
share = _checked(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
seed = _checked(int, lambda n: 0 <= n < 2**32, "a seed: expected 0 to 2**32 - 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the run itself: length, precision, machines, folder."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--max-steps", "--steps", type=positive_int, metavar="N", help="stop after N steps"
    )
    group.add_argument("--seed", type=seed, default=0)
    group.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true"
    )
    group.add_argument(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="N",
        help="batches whose gradients make one step",
    )
    group.add_argument(
        "--clip", type=positive_float, metavar="NORM", help="largest norm of all gradients"
    )
    group.add_argument(
        "--ema",
        type=fraction,
        metavar="DECAY",
        help="validate and export an exponential moving average of the weights",
    )
    group.add_argument(
        "--fast-dev-run",
        action="store_true",
        help="one batch of training and of validation, without logs and checkpoints",
    )
    group.add_argument(
        "--output", metavar="DIR", help="the run's folder (default: a new one below runs/)"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="continue a run: its folder or one of its checkpoints (default: that of --output)",
    )
    _add_machine(parser.add_argument_group("machine"))


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--accelerator", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    group.add_argument(
        "--devices", type=positive_int, default=1, metavar="N", help="devices, or CPU processes"
    )
    group.add_argument("--nodes", type=positive_int, default=1, metavar="N")
    group.add_argument(
        "--strategy",
        choices=("auto", "ddp", "fsdp"),
        default="auto",
        help="for several devices: ddp, or fsdp (FSDP2, Lightning's ModelParallelStrategy); "
        "torchrun and SLURM are recognised",
    )
    group.add_argument(
        "--num-threads", type=positive_int, metavar="N", help="CPU threads (default: torch's)"
    )


def add_config(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--config",
        default=default,
        metavar="NAME|FILE",
        help="preset: options from a YAML file, below those of the command line: "
        f"{_presets()} (in recipes/configs), or a path "
        f"(default: {default})",
    )


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The command line behind what its ``--config`` file says, so that one parser checks both.

    Raises:
        AdderizeError: the file is missing, is not a mapping of options, or has one that the parser
            does not know.
    """
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--config", default=parser.get_default("config"))
    config = asked.parse_known_args(argv)[0].config
    path = Path(config)
    if not path.suffix:
        path = CONFIGS / f"{config}.yaml"
    try:
        options = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AdderizeError(
            f"cannot read --config {config}: {error}; expected {_presets()}, or a YAML file"
        ) from error
    actions = {action.dest: action for action in parser._actions}
    known = actions.keys() - {"config", "help"}
    if not isinstance(options, dict) or not options.keys() <= known:
        unknown = sorted(map(str, options.keys() - known)) if isinstance(options, dict) else options
        raise AdderizeError(
            f"{path} has unknown options: {unknown}; see --help for those there are"
        )
    said = (_tokens(actions[key], value, path) for key, value in options.items())
    return [*itertools.chain.from_iterable(said), *argv]


def _presets() -> str:
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))


def _tokens(action: argparse.Action, value: object, path: Path) -> list[str]:
    """What a preset says of an option, as a command line says it."""
    option, off = (f"--{no}{action.dest.replace('_', '-')}" for no in ("", "no-"))
    if isinstance(value, bool) and action.nargs in (0, "?"):
        return [option] if value else [off] if off in action.option_strings else []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, (bool, dict, list)) for each in values):
        raise AdderizeError(f"{path}: {action.dest} is {value!r}; see --help for what it takes")
    if isinstance(value, list):
        return [option, *map(str, value)]
    return [] if value is None else [f"{option}={value}"]
