"""How far filters move in a training: the adaptive rate shows in nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import SGD, Optimizer

from adderize import AdaptiveLearningRate
from adderize.training.adaptive_rate import adder_filters
from tests.training.tiny_lit import ManualLit, batches, trainer

LR = 0.1


class WatchesMoves(pl.Callback):
    """How far each filter moved in each batch, as a root mean square over the learning rate."""

    def __init__(self) -> None:
        self.moves: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.before = {n: w.detach().clone() for n, w in adder_filters(pl_module).items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for name, weight in adder_filters(pl_module).items():
            move = (weight.detach() - self.before[name]).square().mean().sqrt() / LR
            self.moves.setdefault(name, []).append(round(float(move), 4))


def moves(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    watch = WatchesMoves()
    trainer(AdaptiveLearningRate(), *callbacks, watch, **options).fit(module, batches(3))
    return watch.moves


EVERY_STEP = {"net.3": [0.2] * 3, "net.6": [0.2] * 3}


def plain_sgd(parameters: Any, **_: Any) -> SGD:
    return SGD(parameters, lr=LR)


class Raw(ManualLit):
    """A step made by ``how(module, optimizer, backward)``."""

    def __init__(self, how: Callable[..., Any], optimizer: Callable[..., Any] = plain_sgd) -> None:
        super().__init__(optimizer=optimizer)
        self.how = how

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.how(self, optimizer, backward)


def direct(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
    backward()
    optimizer.step()
