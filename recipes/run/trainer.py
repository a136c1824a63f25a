"""Lightning's Trainer for a run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only

from adderize.errors import AdderizeError
from adderize.ops.choice import Choice, choose
from recipes.run.folder import CHECKPOINTS
from recipes.run.monitors import History, SeedEpochs, StopOnBrokenLoss, Throughput
from recipes.run.states import AveragedWeights, FolderCheckpoint
from recipes.run.whole_files import WholeCheckpoints


def choose_device(arguments: argparse.Namespace) -> tuple[str, Choice]:
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
    choice = choose(device)
    _announce(device, choice, arguments.layers)
    return device, choice


@rank_zero_only
def _announce(device: str, choice: Choice, layers: str) -> None:
    print(f"backend: {choice.name} on {device} ({choice.reason})", flush=True)
    if choice.is_reference and layers.startswith("adder"):
        print(
            "warning: the reference implementation is slow; `adderize doctor` tells how to get "
            "the fast kernels",
            file=sys.stderr,
        )


def make_trainer(
    arguments: argparse.Namespace,
    device: str,
    folder: Path,
    callbacks: Sequence[Callback],
    batches: int,
) -> Trainer:
    """Lightning's trainer with the run's checkpoints, logs and progress.

    Args:
        arguments: those of :func:`recipes.run.add_arguments`, and ``epochs``.
        device: as Lightning names accelerators.
        folder: of the run.
        callbacks: of the recipe.
        batches: in one epoch of one process.
    """
    if arguments.ema is not None and arguments.strategy == "fsdp":
        raise AdderizeError("--ema cannot average sharded weights: use --strategy ddp")
    _quieten()
    interactive = sys.stderr.isatty()
    epochs = arguments.epochs
    if arguments.max_steps:
        epochs = min(epochs, math.ceil(arguments.max_steps * arguments.accumulate / batches))
    return Trainer(
        accelerator=device,
        devices=arguments.devices,
        num_nodes=arguments.nodes,
        strategy=_strategy(arguments),
        # The samplers of recipes.batches know the processes.
        use_distributed_sampler=False,
        max_epochs=epochs,
        precision=arguments.precision,
        # Batches have few sizes: cuDNN times its algorithms once for each.
        benchmark=True,
        accumulate_grad_batches=arguments.accumulate,
        gradient_clip_val=arguments.clip,
        fast_dev_run=arguments.fast_dev_run,
        logger=False if arguments.fast_dev_run else _loggers(folder),
        log_every_n_steps=min(50, batches),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=interactive,
        enable_checkpointing=not arguments.fast_dev_run,
        callbacks=_callbacks(arguments, folder, callbacks, interactive),
        plugins=[WholeCheckpoints(), *_cluster()],
        default_root_dir=folder,
    )


def _callbacks(
    arguments: argparse.Namespace, folder: Path, own: Sequence[Callback], interactive: bool
) -> list[Callback]:
    """The recipe's own among those of every run, in the order in which Lightning calls them."""
    found = [
        *([AveragedWeights(decay=arguments.ema)] if arguments.ema is not None else []),
        SeedEpochs(arguments.seed),
        *own,
        Throughput(),
        StopOnBrokenLoss(),
        History(verbose=not interactive),
        *([TQDMProgressBar()] if interactive else []),
    ]
    if not arguments.fast_dev_run:
        checkpoint = partial(
            FolderCheckpoint,
            dirpath=folder / CHECKPOINTS,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        # The last one holds what the best score so far is.
        found.append(checkpoint(filename="best", monitor="val/top1", mode="max"))
        found.append(checkpoint(filename="last"))
    return found


def _quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # In-memory data needs no worker processes; data in files has them.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    # Each process logs its own speed, and metrics that know the others.
    warnings.filterwarnings("ignore", ".*when logging on epoch level in distributed setting.*")
    # The hook shards where FSDP2 is asked for, which excludes the averages.
    warnings.filterwarnings("ignore", ".*WeightAveraging callback with a model that overrides.*")


def _strategy(arguments: argparse.Namespace) -> Strategy | str:
    if arguments.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=arguments.devices * arguments.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    name: str = arguments.strategy
    return name


def _cluster() -> list[ClusterEnvironment]:
    """SLURM without what Lightning saves there in mid-epoch before the job is requeued.

    It would be loaded before the tests, in place of the network that the training ends with, and by
    every other run that starts in the same folder.
    """
    serves = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if serves else []


def _loggers(folder: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(folder, name="logs")]
    if importlib.util.find_spec("tensorboard"):
        version = loggers[0].version
        loggers.append(
            TensorBoardLogger(folder, name="logs", version=version, default_hp_metric=False)
        )
    return loggers


def fit(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, checkpoint: str | None
) -> None:
    """Trains; what Lightning prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
