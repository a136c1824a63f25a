"""The end of every run: statistics re-estimated, tested, exported, summarised."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from adderize import count, recalibrate, save_model
from adderize.bench.process_memory import peak_of_process
from adderize.callbacks import ShiftNorms
from adderize.counting.budget import OpBudget
from adderize.counting.rows import Layer, Views
from adderize.errors import listed
from adderize.surgery.engine import converted_layers
from adderize.training.recalibration import tracking_norms
from adderize.training.shift_norms import round_norm_scales_
from recipes.batches import ImageData
from recipes.image_classifier import ImageClassifier
from recipes.model_card import model_card
from recipes.run import CHECKPOINTS, METRICS, write_json
from recipes.run.monitors import History, Throughput

_RECALIBRATION_BATCHES = 50
_Kind = TypeVar("_Kind", bound=Callback)


def finish(
    arguments: argparse.Namespace,
    folder: Path,
    trainer: Trainer,
    module: ImageClassifier,
    data: ImageData,
    backend: str,
) -> dict[str, Any]:
    """Tests the trained network, writes `model/` and `metrics.json`, prints the summary.

    The batch norms' running statistics lag behind the filters at a high learning rate, so they are
    re-estimated on training images first; the top-1 before that is reported too. All processes must
    call this; the first one writes.
    """
    before = _accuracies(trainer.validate, "val", module, data)
    device = torch.device(trainer.strategy.root_device)
    module.to(device)
    if tracking_norms(module.model):
        recalibrate(module.model, data.recalibration_images(_RECALIBRATION_BATCHES, device))
    for callback in _callbacks(trainer, ShiftNorms):
        round_norm_scales_(module.model, callback.terms)
    after = _accuracies(trainer.test, "test", module, data)
    network = module.exported()
    metrics = {
        "test.top1": after["top1"],
        "test.top1_running_statistics": before["top1"],
        **({"test.top5": after["top5"]} if "top5" in after else {}),
        **_training_metrics(trainer, data, device),
        "converted": list(converted_layers(network)),
        "layers": arguments.layers,
        "backend": backend,
        "seed": arguments.seed,
    }
    if not trainer.is_global_zero:
        return metrics
    budget = _budget(network, data)
    metrics["operations"] = {
        view: {
            "multiplications": operations.multiplications,
            "additions": operations.additions,
            **({"xnors": operations.xnors} if operations.xnors else {}),
        }
        for view, operations in (("before", budget.before), ("after", budget.after))
    }
    card = model_card(arguments, metrics, module, budget, data)
    save_model(network, folder / "model", card=card)
    write_json(folder / METRICS, metrics)
    print(_summary(metrics, data, folder), flush=True)
    return metrics


def _accuracies(
    evaluate: Callable[..., Any], stage: str, module: ImageClassifier, data: ImageData
) -> dict[str, float]:
    with contextlib.redirect_stdout(sys.stderr):
        (results,) = evaluate(module, datamodule=data, verbose=False)
    return {
        name.removeprefix(f"{stage}/"): round(float(value), 4)
        for name, value in results.items()
        if "/top" in name
    }


def _training_metrics(trainer: Trainer, data: ImageData, device: torch.device) -> dict[str, Any]:
    (throughput,), (history,) = _callbacks(trainer, Throughput), _callbacks(trainer, History)
    speed = throughput.images_per_second
    steps = math.ceil(len(data.train_dataloader()) / trainer.accumulate_grad_batches)
    return {
        "train.top1": history.epochs[-1]["train/top1"],
        "epochs": round(trainer.global_step / steps, 2),
        "steps": trainer.global_step,
        "seconds_per_epoch": round(data.train_size / speed, 3),
        "images_per_second": round(speed, 1),
        "peak_memory_mb": round(_peak_memory(device)),
        "history": history.epochs,
    }


def _callbacks(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def _peak_memory(device: torch.device) -> float:
    """MB (of 10^6 bytes): the process's resident set, or what was allocated on the GPU."""
    is_cuda = device.type == "cuda"
    return (torch.cuda.max_memory_allocated(device) if is_cuda else peak_of_process()) / 1e6


def _budget(network: nn.Module, data: ImageData) -> OpBudget:
    """Per image; for a network that stayed convolutional, `after` is what it is."""
    budget = count(network, data.input_size)
    if converted_layers(network):
        return budget
    layers = tuple(map(_unconverted, budget.layers))
    return dataclasses.replace(budget, total=_unconverted(budget.total), layers=layers)


def _unconverted(row: Layer) -> Layer:
    by_dtype = {dtype: Views(views.before, views.before) for dtype, views in row.by_dtype.items()}
    return dataclasses.replace(row, by_dtype=by_dtype)


def _summary(metrics: dict[str, Any], data: ImageData, folder: Path) -> str:
    before, after = metrics["operations"]["before"], metrics["operations"]["after"]
    batches = min(_RECALIBRATION_BATCHES, len(data.training_loader()))
    top5 = f", top-5 {metrics['test.top5']:.2f} %" if "test.top5" in metrics else ""
    rows = {
        "data": f"{data.name}: {data.train_size:,} training and {data.test_size:,} test images",
        "layers": f"{metrics['layers']} (converted: {listed(metrics['converted']) or 'none'})",
        "test top-1": f"{metrics['test.top1']:.2f} %, batch norms recalibrated on {batches} "
        f"training batches ({metrics['test.top1_running_statistics']:.2f} % before that){top5}",
        "train top-1": f"{metrics['train.top1']:.2f} % over the last epoch",
        "training": f"{metrics['epochs']:g} epochs, {metrics['steps']:,} steps, "
        f"{metrics['seconds_per_epoch']:.1f} s an epoch, "
        f"{metrics['images_per_second']:,.0f} images/s, peak {metrics['peak_memory_mb']:,} MB",
        **{
            kind: f"{before.get(kind, 0):,} before, {after[kind]:,} after, per image"
            for kind in after
        },
        "model": f"{folder / 'model'}",
        "checkpoints": f"{folder / CHECKPOINTS}",
        "metrics": f"{folder / METRICS}, logs in {folder / 'logs'}",
    }
    if not (folder / CHECKPOINTS).exists():
        del rows["checkpoints"]
    return "\n".join(f"{label:<16} {text}" for label, text in rows.items())
