"""What every recipe watches during training: speed, metrics, and losses that break."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from adderize.errors import AdderizeError
from recipes.batches.sampling import seed_of

_STEPS_BETWEEN_LOOKS = 50


class Throughput(Callback):
    """Training speed, data loading included and validation not; survives a resume.

    Logs ``images/s`` of the running epoch, as often as the Trainer's loggers ask.

    Attributes:
        images, seconds: what all epochs so far took, of all processes together.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = self._epoch_start = time.perf_counter()
        self._epoch_images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now, images = time.perf_counter(), len(batch[0]) * trainer.world_size
        self.seconds += now - self._last
        self.images += images
        self._last = now
        self._epoch_images += images
        # Seldom: each call takes as long as launching tens of kernels.
        if trainer._logger_connector.should_update_logs:
            self._log(pl_module, on_step=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, on_step=False)

    def _log(self, pl_module: LightningModule, on_step: bool) -> None:
        # On the host: a number would be copied to the device, which waits for it.
        speed = torch.tensor(self._epoch_images / (self._last - self._epoch_start), device="cpu")
        pl_module.log("images/s", speed, prog_bar=True, on_step=on_step, on_epoch=not on_step)


class History(Callback):
    """The metrics of every epoch; survives a resume.

    Args:
        verbose: also print one line an epoch on stderr, for where there is no progress bar.

    Attributes:
        epochs: a row of metrics an epoch.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.epochs: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        row = {name: round(float(values[name]), 4) for name in _FORMATS if name in values}
        self.epochs.append({"epoch": trainer.current_epoch + 1, **row})
        if self.verbose and trainer.is_global_zero:
            parts = [f"{name} {value:{_FORMATS[name]}}" for name, value in row.items()]
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print("  ".join([epoch, *parts]), file=sys.stderr, flush=True)


_FORMATS = {
    "train/loss": ".4f",
    "train/top1": ".2f",
    "val/loss": ".4f",
    "val/top1": ".2f",
    "val/top5": ".2f",
    "images/s": ",.0f",
}


class TrainingDiverged(AdderizeError):
    """A loss that is no longer finite."""


class StopOnBrokenLoss(Callback):
    """Ends the run when a loss is no longer finite, before any checkpoint is written.

    Looks at the running sum of losses every 50 steps and at the end of an epoch, so that the
    training never waits for the device in between.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sum: Tensor | float = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = self._sum + outputs["loss"].detach()
        if (batch_idx + 1) % _STEPS_BETWEEN_LOOKS == 0:
            self._check(trainer, "training", float(self._sum))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, "training", float(self._sum))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, "validation", float(trainer.callback_metrics["val/loss"]))

    def _check(self, trainer: Trainer, kind: str, loss: float) -> None:
        if math.isfinite(loss):
            return
        checkpoint = getattr(trainer.checkpoint_callback, "dirpath", None)
        raise TrainingDiverged(
            f"the {kind} loss is {loss} in epoch {trainer.current_epoch + 1}, step "
            f"{trainer.global_step}: the training has diverged. Start again with a lower --lr; the "
            f"checkpoints of the epochs before are unharmed in {checkpoint}"
        )


class SeedEpochs(Callback):
    """Seeds dropout and its like by seed, epoch and process, so that a resumed run repeats them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, trainer.global_rank, 2))
