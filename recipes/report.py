"""The end of every run: statistics re-estimated, tested, exported, summarised."""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer

from adderize import count, recalibrate, save_model
from adderize.adaptive_lr import adder_filters
from recipes.callbacks import History, Throughput
from recipes.data import ImageData
from recipes.module import ImageClassifier
from recipes.run import CHECKPOINTS, METRICS, write_json

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
    re-estimated on training images first; the top-1 before that is reported too.
    """
    lagging = _top1(trainer.validate, "val", module, data)
    device = torch.device(trainer.strategy.root_device)
    recalibrate(module.model.to(device), data.recalibration_images(_RECALIBRATION_BATCHES, device))
    top1 = _top1(trainer.test, "test", module, data)
    save_model(module.model, folder / "model")
    metrics = {
        "test.top1": top1,
        "test.top1_running_statistics": lagging,
        **_training_metrics(trainer, module, data, device),
        "layers": arguments.layers,
        "backend": backend,
        "seed": arguments.seed,
        "operations": _operations(module, data),
    }
    write_json(folder / METRICS, metrics)
    print(_summary(metrics, data, folder), flush=True)
    return metrics


def _top1(
    evaluate: Callable[..., Any], stage: str, module: ImageClassifier, data: ImageData
) -> float:
    with contextlib.redirect_stdout(sys.stderr):
        (results,) = evaluate(module, datamodule=data, verbose=False)
    return round(float(results[f"{stage}/top1"]), 4)


def _training_metrics(
    trainer: Trainer, module: ImageClassifier, data: ImageData, device: torch.device
) -> dict[str, Any]:
    throughput, history = _callback(trainer, Throughput), _callback(trainer, History)
    images, speed = data.train_size, throughput.images_per_second
    return {
        "train.top1": history.epochs[-1]["train/top1"],
        "converted": list(adder_filters(module.model)),
        "epochs": round(trainer.global_step / len(data.train_dataloader()), 2),
        "steps": trainer.global_step,
        "seconds_per_epoch": round(images / speed, 3),
        "images_per_second": round(speed, 1),
        "peak_memory_mb": round(_peak_memory(device)),
        "history": history.epochs,
    }


def _callback(trainer: Trainer, kind: type[_Kind]) -> _Kind:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


def _peak_memory(device: torch.device) -> float:
    """MiB: the process's resident set, or what was allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _operations(module: ImageClassifier, data: ImageData) -> dict[str, dict[str, int]]:
    """Per image; for a network that stayed convolutional, `after` is what it is."""
    budget = count(module.model, data.input_size)
    after = budget.after if adder_filters(module.model) else budget.before
    return {
        view: {
            "multiplications": operations.multiplications,
            "additions": operations.additions,
        }
        for view, operations in (("before", budget.before), ("after", after))
    }


def _summary(metrics: dict[str, Any], data: ImageData, folder: Path) -> str:
    before, after = metrics["operations"]["before"], metrics["operations"]["after"]
    batches = min(_RECALIBRATION_BATCHES, len(data.train_dataloader()))
    converted = ", ".join(metrics["converted"]) or "none"
    rows = {
        "data": f"{data.name}: {data.train_size:,} training and {data.test_size:,} test images",
        "layers": f"{metrics['layers']} (adders: {converted})",
        "test top-1": f"{metrics['test.top1']:.2f} %, batch norms recalibrated on {batches} "
        f"training batches ({metrics['test.top1_running_statistics']:.2f} % with the running "
        "statistics)",
        "train top-1": f"{metrics['train.top1']:.2f} % over the last epoch",
        "training": f"{metrics['epochs']:g} epochs, {metrics['steps']:,} steps, "
        f"{metrics['seconds_per_epoch']:.1f} s an epoch, "
        f"{metrics['images_per_second']:,.0f} images/s, peak {metrics['peak_memory_mb']:,} MB",
        **{
            kind: f"{before[kind]:,} before, {after[kind]:,} after, per image"
            for kind in ("multiplications", "additions")
        },
        "model": f"{folder / 'model'}",
        "checkpoints": f"{folder / CHECKPOINTS}",
        "metrics": f"{folder / METRICS}, logs in {folder / 'logs'}",
    }
    return "\n".join(f"{label:<16} {text}" for label, text in rows.items())
