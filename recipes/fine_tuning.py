"""Quantization-aware fine-tuning as a plain loop."""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from adderize import scale_adder_gradients_
from recipes.batches import ImageData
from recipes.batches.sampling import EpochShuffle
from recipes.distillation import Distillation
from recipes.schedules import schedule


def fine_tune(
    model: nn.Module,
    data: ImageData,
    distillation: Distillation | None,
    *,
    epochs: int,
    lr: float,
    eta: float,
    max_steps: int | None = None,
) -> list[dict[str, float]]:
    """Train a prepared network on the CPU, in place; its learning rate falls to 0.

    Args:
        model: from :func:`adderize.quantize.prepare_qat`.
        distillation: a teacher's part of the loss.
        eta: of the adaptive learning rate of adder filters.
        max_steps: the end, where that is before the last epoch's.

    Returns:
        loss, seconds and steps of each epoch.
    """
    loader = data.training_loader()
    assert isinstance(loader.sampler, EpochShuffle)
    steps = min(epochs * len(loader), max_steps or epochs * len(loader))
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = schedule(optimizer, "cosine", steps)
    history, done = [], 0
    model.train()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        start, losses = time.perf_counter(), []
        for batch in loader:
            if done == steps:
                break
            images, labels = data.on_after_batch_transfer(batch, 0)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if distillation:
                loss = distillation(images, logits, loss)
            optimizer.zero_grad()
            loss.backward()
            scale_adder_gradients_(model, eta)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
            done += 1
        if not losses:
            break
        mean, seconds = float(torch.stack(losses).mean()), time.perf_counter() - start
        history.append({"loss": mean, "seconds": seconds, "steps": len(losses)})
        print(f"tuning {epoch + 1}/{epochs}  loss {mean:.4f}  {seconds:.1f} s", file=sys.stderr)
    return history
