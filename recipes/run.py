"""A training run as a folder: its arguments, checkpoints, logs, exported model and metrics.

FOLDER/arguments.json            every argument, as resolved
FOLDER/checkpoints/{best,last}.ckpt
FOLDER/logs/version_N/           metrics.csv, and TensorBoard's events where it is installed
FOLDER/model/                    the trained network, for adderize.load_model
FOLDER/metrics.json              written last: a folder that has it holds a finished run
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from adderize.errors import AdderizeError
from adderize.ops import backends
from recipes.callbacks import History, StopOnBrokenLoss, Throughput
from recipes.data import InMemoryImages

ARGUMENTS, METRICS, CHECKPOINTS = "arguments.json", "metrics.json", "checkpoints"
# What may differ between a run and its continuation.
_FREE = {"accelerator", "num_threads", "output", "resume"}


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive integer")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not a seed: expected 0 to 2**32 - 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every recipe has."""
    parser.add_argument(
        "--max-steps", "--steps", type=positive_int, metavar="N", help="stop after N steps"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true"
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--num-threads", type=positive_int, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the run's folder (default: a new one below runs/)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="continue a run: its folder or one of its checkpoints (default: that of --output)",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; those of the run that `--resume` names, where it is given.

    `arguments.resume` becomes the checkpoint's path, or stays None.

    Raises:
        AdderizeError: nothing to resume, or an argument differs from the run's own.
    """
    arguments = parser.parse_args(argv)
    if arguments.resume is None:
        return arguments
    given = arguments.resume or arguments.output
    if not given:
        parser.error("--resume needs the run's folder: --resume PATH, or --output DIR --resume")
    checkpoint = Path(given)
    if checkpoint.is_dir():
        checkpoint = checkpoint / CHECKPOINTS / "last.ckpt"
    folder = checkpoint.parent.parent
    if arguments.output and Path(arguments.output).resolve() != folder.resolve():
        raise AdderizeError(
            f"--output {arguments.output} is not the resumed run's folder {folder}: leave it out"
        )
    if (folder / METRICS).exists():
        raise AdderizeError(f"the run in {folder} is finished: see {folder / METRICS}")
    try:
        saved = json.loads((folder / ARGUMENTS).read_text())
        torch.load(checkpoint, map_location="meta", weights_only=True)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise AdderizeError(
            f"cannot resume from {given}: {reason}. Expected the folder of a run with "
            f"{ARGUMENTS} and {CHECKPOINTS}/last.ckpt, or a checkpoint in it"
        ) from error
    parser.set_defaults(**{**saved, "output": None, "resume": None})
    arguments = parser.parse_args(argv)
    for key, value in vars(arguments).items():
        if key not in _FREE and saved.get(key) != value:
            raise AdderizeError(
                f"--{key.replace('_', '-')} is {value}, but the run in {folder} has "
                f"{saved.get(key)}: leave it out, or start a new run"
            )
    arguments.output, arguments.resume = str(folder), str(checkpoint)
    return arguments


def prepare_folder(arguments: argparse.Namespace, recipe: str) -> Path:
    """The run's folder, with its arguments saved; a new one where none is given.

    Raises:
        AdderizeError: the folder holds another run.
    """
    if arguments.resume:
        return Path(arguments.output)
    if arguments.output:
        folder = Path(arguments.output)
        if (folder / ARGUMENTS).exists():
            raise AdderizeError(
                f"{folder} holds a run already: continue it with --resume {folder}, "
                "give another --output, or remove it"
            )
    else:
        number = 0
        while (folder := Path("runs") / recipe / f"version_{number}").exists():
            number += 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ARGUMENTS, vars(arguments))
    except OSError as error:
        raise AdderizeError(f"cannot write to --output {folder}: {error}") from error
    return folder


def write_json(path: Path, values: object) -> None:
    """Written whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(values, indent=2) + "\n")
    unfinished.replace(path)


def choose_device(arguments: argparse.Namespace) -> tuple[str, backends.Choice]:
    """The device type and the adder backend that serves it; prints both, as the first line."""
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    device: str = arguments.accelerator
    usable = [
        name
        for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps))
        if backend.is_available()
    ]
    if device == "auto":
        device = usable[0] if usable else "cpu"
    elif device not in ("cpu", *usable):
        found = ", ".join(("cpu", *usable))
        raise AdderizeError(f"--accelerator is {device}, but this machine has {found}")
    if device == "cpu" and arguments.precision == "16-mixed":
        raise AdderizeError("--precision 16-mixed needs a GPU: use bf16-mixed on the CPU")
    choice = backends.choose(device)
    print(f"backend: {choice.name} on {device} ({choice.reason})", flush=True)
    if choice.name == "reference":
        print(
            "warning: the reference implementation is slow; `adderize doctor` tells how to get "
            "the fast kernels",
            file=sys.stderr,
        )
    return device, choice


def make_trainer(
    arguments: argparse.Namespace,
    device: str,
    folder: Path,
    callbacks: Sequence[Callback],
    batches: int,
) -> Trainer:
    """Lightning's trainer with the run's checkpoints, logs and progress; `batches` an epoch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The data is in memory: worker processes would only slow it down.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    loggers: list[Logger] = [CSVLogger(folder, name="logs")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(
            TensorBoardLogger(
                folder, name="logs", version=loggers[0].version, default_hp_metric=False
            )
        )
    interactive = sys.stderr.isatty()
    checkpoint = partial(
        ModelCheckpoint,
        dirpath=folder / CHECKPOINTS,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    epochs = arguments.epochs
    if arguments.max_steps:
        epochs = min(epochs, math.ceil(arguments.max_steps / batches))
    return Trainer(
        accelerator=device,
        devices=1,
        max_epochs=epochs,
        precision=arguments.precision,
        logger=loggers,
        log_every_n_steps=min(50, batches),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=interactive,
        callbacks=[
            *callbacks,
            Throughput(),
            StopOnBrokenLoss(),
            History(verbose=not interactive),
            *([TQDMProgressBar()] if interactive else []),
            checkpoint(filename="best", monitor="val/top1", mode="max"),
            checkpoint(filename="last"),
        ],
    )


def fit(
    trainer: Trainer, module: LightningModule, data: InMemoryImages, checkpoint: str | None
) -> None:
    """Trains; what Lightning prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
