"""The LightningModule of every recipe: an image classifier, converted where it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from adderize import adderize
from adderize.adaptive_lr import adder_filters
from adderize.architectures import build


class Top1(MulticlassAccuracy):
    """Top-1 accuracy in percent."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="micro")

    def compute(self) -> Tensor:
        return 100 * super().compute()


class ImageClassifier(LightningModule):
    """A classifier trained with Nesterov SGD and a cosine schedule, as convolutions or as adders.

    The conversion happens here, so `load_from_checkpoint` rebuilds the network that was trained.
    Logs ``train/loss``, ``train/top1``, ``val/loss``, ``val/top1``, ``test/loss`` and
    ``test/top1``; top-1 in percent.

    Args:
        arch: a model's name as ``adderize plan`` takes it, such as ``recipes.models:lenet5_bn``.
        num_classes: width of the logits.
        conversion: options of :func:`adderize.adderize`; None keeps the convolutional network.
        lr: learning rate at the start; it falls to 0 along a half cosine, step by step.
        filter_lr_factor: the adder filters' learning rate is `lr` times this (the paper's ablation
            raises it 100 times in place of the adaptive rate).
        momentum: of Nesterov SGD.
        weight_decay: on every parameter.
        max_steps: the training and its schedule end here, if not with the last epoch before.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        conversion: Mapping[str, Any] | None = None,
        lr: float = 0.1,
        filter_lr_factor: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        max_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = build(arch, num_classes=num_classes)
        if conversion is not None:
            self.model = adderize(self.model, **conversion)
        self.accuracies = nn.ModuleDict(
            {f"{stage}/top1": Top1(num_classes) for stage in ("train", "val", "test")}
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy: Any = self.accuracies[f"{stage}/top1"]
        accuracy.update(logits, labels)
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(labels))
        log(f"{stage}/loss", loss)
        log(f"{stage}/top1", accuracy, prog_bar=True)
        return loss

    # Not Trainer(max_steps): with it, Lightning skips an epoch when it resumes at an epoch's end.
    def on_train_start(self) -> None:
        self._stop_at_max_steps()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_at_max_steps()

    def _stop_at_max_steps(self) -> None:
        max_steps = self.hparams["max_steps"]
        if max_steps and self.trainer.global_step >= max_steps:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options: Any = self.hparams
        filters: set[nn.Parameter] = set()
        if options.filter_lr_factor != 1:
            filters.update(adder_filters(self.model).values())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p not in filters]}
        ]
        if filters:
            # The raised rate is for the gradient; the decay stays what it is at the rate `lr`.
            factor = options.filter_lr_factor
            raised = {"lr": options.lr * factor, "weight_decay": options.weight_decay / factor}
            groups.append({"params": [p for p in self.parameters() if p in filters], **raised})
        optimizer = SGD(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=True,
        )
        steps = min(self.trainer.estimated_stepping_batches, options.max_steps or math.inf)

        def half_cosine(step: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))

        schedule = LambdaLR(optimizer, half_cosine)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
