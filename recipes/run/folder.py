"""A training run as a folder: its arguments, checkpoints, logs, exported model and metrics.

FOLDER/arguments.json            every argument, as resolved
FOLDER/checkpoints/{best,last}.ckpt
FOLDER/logs/version_N/           metrics.csv, and TensorBoard's events where it is installed
FOLDER/model/                    the trained network, for adderize.load_model
FOLDER/metrics.json              written last: a folder that has it holds a finished run
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from adderize.errors import AdderizeError, first_line, writing
from adderize.whole_files import write_whole
from recipes.run.run_options import with_config

ARGUMENTS, METRICS, CHECKPOINTS = "arguments.json", "metrics.json", "checkpoints"
LAST = Path(CHECKPOINTS) / "last.ckpt"
# What may differ between a run and its continuation.
_FREE = {"accelerator", "data_on_device", "num_threads", "output", "resume", "workers"}


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, last: str = METRICS
) -> argparse.Namespace:
    """The arguments; those of the run that `--resume` names, where it is given.

    `arguments.resume` becomes the checkpoint's path, or stays None.

    Args:
        parser: of the recipe.
        argv: the command line's arguments; None for those of the process.
        last: the file that the recipe writes last.

    Raises:
        AdderizeError: nothing to resume, or an argument differs from the run's own.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    if "config" in arguments:
        arguments = parser.parse_args(with_config(parser, argv))
    arguments.command = shlex.join([*parser.prog.split(), *argv])
    if arguments.resume is None:
        return arguments
    given = arguments.resume or arguments.output
    if not given:
        parser.error("--resume needs the run's folder: --resume PATH, or --output DIR --resume")
    checkpoint = Path(given)
    if checkpoint.is_dir():
        checkpoint = checkpoint / LAST
    folder = checkpoint.parent.parent
    own = arguments.output in (None, parser.get_default("output"))
    if not own and Path(arguments.output).resolve() != folder.resolve():
        raise AdderizeError(
            f"--output {arguments.output} is not the resumed run's folder {folder}: leave it out"
        )
    if (folder / last).exists():
        raise AdderizeError(f"the run in {folder} is finished: see {folder / last}")
    try:
        saved = json.loads((folder / ARGUMENTS).read_text())
        torch.load(checkpoint, map_location="meta", weights_only=True)
    except Exception as error:
        raise AdderizeError(
            f"cannot resume from {given}: {first_line(error)}. Expected the folder of a run with "
            f"{ARGUMENTS} and {LAST}, or a checkpoint in it"
        ) from error
    parser.set_defaults(**{**saved, "output": None, "resume": None})
    arguments = parser.parse_args(argv)
    check_same(folder, saved, arguments)
    arguments.output, arguments.resume = str(folder), str(checkpoint)
    return arguments


def check_same(folder: Path, saved: Mapping[str, object], arguments: argparse.Namespace) -> None:
    """Raise where the arguments are not those of the run in a folder.

    Raises:
        AdderizeError: the first one that differs.
    """
    for key, value in vars(arguments).items():
        if key not in _FREE and saved.get(key) != value:
            raise AdderizeError(
                f"--{key.replace('_', '-')} is {value}, but the run in {folder} has "
                f"{saved.get(key)}: leave it out, or start a new run"
            )


def has_checkpoint(folder: Path) -> bool:
    """Whether a run got to the end of its first epoch, from which it can be resumed."""
    return (folder / LAST).exists()


def continued(argv: Sequence[str], folder: Path) -> list[str]:
    """The command line of a run into `folder`, which goes on with what an interruption left there.

    Args:
        argv: names the folder as `--output`.
        folder: holds no run, or an unfinished one; what ended within its first epoch gives way.
    """
    if (folder / METRICS).exists():
        return list(argv)
    if has_checkpoint(folder):
        return [*argv, "--resume"]
    if (folder / ARGUMENTS).exists():
        (folder / ARGUMENTS).unlink()
    return list(argv)


def prepare_folder(arguments: argparse.Namespace, recipe: str) -> Path:
    """The run's folder, with its arguments saved; a new one where none is given.

    Raises:
        AdderizeError: the folder holds another run.
    """
    if arguments.resume:
        return Path(arguments.output)
    # The first process makes the folder, and Lightning tells the others where it is.
    elsewhere = Path(arguments.output or "runs")
    folder = rank_zero_only(_new_folder, default=elsewhere)(arguments, recipe)
    assert folder is not None
    return folder


def _new_folder(arguments: argparse.Namespace, recipe: str) -> Path:
    if arguments.output:
        folder = Path(arguments.output)
        if (folder / ARGUMENTS).exists():
            raise AdderizeError(f"{folder} holds a run already: {_advice(folder)}")
    else:
        folder = Path("runs") / recipe
    with writing(f"--output {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.output:
            folder = _numbered_folder(folder)
        write_json(folder / ARGUMENTS, vars(arguments))
    return folder


def _numbered_folder(parent: Path) -> Path:
    """A new one; runs that start at the same moment, as those of a job array, get one each."""
    number = 0
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _advice(folder: Path) -> str:
    if (folder / METRICS).exists():
        return "it is finished; give another --output, or remove it"
    if has_checkpoint(folder):
        quoted = shlex.quote(str(folder))
        return f"continue it with --resume {quoted}, give another --output, or remove it"
    return "it ended within its first epoch, or is still in it; give another --output, or remove it"


def write_json(path: Path, values: object) -> None:
    write_whole(path, json.dumps(values, indent=2) + "\n")
