"""The LightningModule of every recipe: an image classifier, converted where it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from torchmetrics import Metric

from adderize import AdderizeError, adderize, binarize
from adderize.checkpoints.named import start_from
from adderize.errors import listed
from adderize.models.by_name import build
from adderize.surgery.entries import converted_entries
from adderize.training.adaptive_rate import adder_filters
from recipes.compiled import compile_network
from recipes.distillation import Distillation
from recipes.schedules import schedule

_STAGES = ("train", "val", "test")


class TopK(Metric):
    """Top-k accuracy in percent.

    torchmetrics' own makes one-hot tensors, and looks at them on the host.
    """

    right: Tensor
    total: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        for name in ("right", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        best = logits.topk(self.k).indices if self.k > 1 else logits.argmax(1, keepdim=True)
        # Not `+=`, which sets the attributes anew: that takes the host as long as the launches.
        self.right.add_(best.eq(labels[:, None]).sum())
        self.total.add_(len(labels))

    def compute(self) -> Tensor:
        return 100 * self.right / self.total


class MeanLoss(Metric):
    """The mean of losses over images, each given as the mean of a batch."""

    sum: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        self.sum = self.sum + loss.detach() * images
        self.total += images

    def compute(self) -> Tensor:
        return self.sum / self.total


class ImageClassifier(LightningModule):
    """A classifier trained with SGD, as convolutions, as adders or as a binary network.

    The conversion happens here, so `load_from_checkpoint` rebuilds the network that was trained.
    Logs ``loss``, ``top1`` and, above five classes, ``top5`` of ``train/``, ``val/`` and ``test/``;
    accuracies in percent.

    Args:
        arch: a model's name as ``adderize plan`` takes it, such as ``adderize.models:lenet5_bn``.
        num_classes: width of the logits.
        conversion: options of :func:`adderize.adderize`; None for no adders.
        binarization: options of :func:`adderize.binarize`; None for no binary layers.
        arch_options: keyword arguments of the model's builder.
        pretrained: weights that the network starts from, before its conversion; as for
            :func:`adderize.checkpoints.named.start_from`. Not part of the checkpoint.
        start: called with the converted network, to change what it starts from. Not part of the
            checkpoint.
        distillation: a teacher; not part of the checkpoint.
        lr: learning rate at the start, or after the warm-up.
        filter_lr_factor: the adder filters' learning rate is `lr` times this (the paper's ablation
            raises it 100 times in place of the adaptive rate).
        momentum, nesterov: of SGD.
        weight_decay: on every parameter.
        label_smoothing: of the training loss.
        schedule: options of :func:`recipes.schedules.schedule`, and ``warmup_epochs``; the default
            is a half cosine to 0, step by step.
        max_steps: the training and its schedule end here, if not with the last epoch before.
        compile: the mode in which ``torch.compile`` compiles the network; None: not at all.
        channels_last: the memory format of the filters.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        conversion: Mapping[str, Any] | None = None,
        binarization: Mapping[str, Any] | None = None,
        arch_options: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        start: Callable[[nn.Module], object] | None = None,
        distillation: Distillation | None = None,
        lr: float = 0.1,
        filter_lr_factor: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        schedule: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        compile: str | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pretrained", "start", "distillation"])
        self.model = self._fresh_network(pretrained)
        if pretrained is not None:
            self._check_layers(pretrained)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if start is not None:
            start(self.model)
        self._gradients = compile_network(self.model, compile) if compile else None
        self.distillation = distillation
        # Stages whose metrics Lightning has to be told of, in an epoch's first step: after a resume
        # that need not be its first batch.
        self._unnamed = set(_STAGES)
        self.losses = nn.ModuleDict({f"{stage}/loss": MeanLoss() for stage in _STAGES})
        self.accuracies = nn.ModuleDict(
            {f"{stage}/top{k}": TopK(k) for stage in _STAGES for k in (1, 5) if k < num_classes}
        )

    def _fresh_network(self, pretrained: str | None = None) -> nn.Module:
        options: Any = self.hparams
        model = build(
            options.arch, **{"num_classes": options.num_classes, **(options.arch_options or {})}
        )
        if pretrained is not None:
            model = start_from(model, options.arch, pretrained)
        if options.conversion is not None:
            model = adderize(model, **options.conversion)
        if options.binarization is not None:
            model = binarize(model, **options.binarization)
        return model

    def _check_layers(self, pretrained: str) -> None:
        """Raise where the trained weights brought other layers than the options give.

        A resumed run and :meth:`exported` build the network from the options alone.
        """
        found, expected = (converted_entries(m) for m in (self.model, self._fresh_network()))
        names = sorted(found.keys() | expected.keys())
        different = [name for name in names if found.get(name) != expected.get(name)]
        if not different:
            return
        first, kinds = different[0], ("kind", "gradient", "norm")
        there, here = (
            "as it was built"
            if first not in entries
            else ", ".join(f"{kind} {entries[first][kind]}" for kind in kinds)
            for entries in (found, expected)
        )
        raise AdderizeError(
            f"--pretrained {pretrained} has other layers than this run: {listed(different)}; "
            f"{first} is there {there}, here {here}. Give the --layers and --gradient that it was "
            "made with, or the weights of a network without adders"
        )

    def exported(self) -> nn.Module:
        """A copy of the network on the CPU, neither compiled nor sharded.

        Sharded ones are collected in the first process, and all processes must call this.
        """
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        sharded = any(isinstance(weight, DTensor) for weight in self.model.parameters())
        state = (
            get_model_state_dict(self.model, options=whole) if sharded else self.model.state_dict()
        )
        network = self._fresh_network()
        if state:
            network.load_state_dict(state)
        return network.eval()

    def configure_model(self) -> None:
        """Shards the network where the strategy is FSDP2; Lightning calls it."""
        strategy = None if self._trainer is None else self._trainer.strategy
        sharded = any(isinstance(weight, DTensor) for weight in self.model.parameters())
        if sharded or not isinstance(strategy, ModelParallelStrategy):
            return
        mesh = strategy.device_mesh["data_parallel"]
        # FSDP2 takes contiguous filters only.
        self.model.to(memory_format=torch.contiguous_format)
        blocks = [child for child in self.model.children() if [*child.parameters()]]
        for module in (*blocks, self.model):
            fully_shard(module, mesh=mesh)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    def on_train_epoch_start(self) -> None:
        self._unnamed.add("train")

    def on_validation_epoch_start(self) -> None:
        self._unnamed.add("val")

    def on_test_epoch_start(self) -> None:
        self._unnamed.add("test")

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        if self._gradients:
            self._gradients.begin_step()
        logits = self(images)
        loss = self._loss(images, logits, labels, stage)
        self._measure(loss, logits, labels, stage)
        return loss

    def _measure(self, loss: Tensor, logits: Tensor, labels: Tensor, stage: str) -> None:
        metrics: dict[str, Any] = {
            name: metric
            for name, metric in (*self.losses.items(), *self.accuracies.items())
            if name.startswith(stage)
        }
        for name, metric in metrics.items():
            if name.endswith("loss"):
                metric.update(loss, len(labels))
            else:
                metric.update(logits, labels)
            # Lightning reads a metric at an epoch's end, whichever of its steps named it.
            if stage in self._unnamed:
                self.log(name, metric, on_epoch=True, on_step=False, prog_bar=name.endswith("top1"))
        self._unnamed.discard(stage)

    def _loss(self, images: Tensor, logits: Tensor, labels: Tensor, stage: str) -> Tensor:
        if stage != "train":
            return F.cross_entropy(logits, labels)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        return self.distillation(images, logits, loss) if self.distillation else loss

    def on_after_backward(self) -> None:
        if self._gradients:
            self._gradients.own()

    def on_fit_start(self) -> None:
        if self.distillation:
            self.distillation.to(self.device)

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
            nesterov=options.nesterov,
        )
        per_epoch = self._steps_per_epoch()
        steps = per_epoch * (self.trainer.max_epochs or 1)
        shape = {"kind": "cosine", "warmup_epochs": 0, **(options.schedule or {})}
        scheduler = schedule(
            optimizer,
            steps=min(steps, options.max_steps or steps),
            warmup_steps=round(shape.pop("warmup_epochs") * per_epoch),
            **shape,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps_per_epoch(self) -> int:
        # Not estimated_stepping_batches: it starts the loader's worker processes, which then fetch
        # the first batches before a resumed run knows its epoch.
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return math.ceil(len(data.train_dataloader()) / self.trainer.accumulate_grad_batches)
