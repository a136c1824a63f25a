"""A short training of a matched or reconstructed network, with the labels or without them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.data.augmentation import crop_and_flip, draw_crops
from adderize.errors import AdderizeError
from adderize.progress import counter
from adderize.training.adaptive_rate import scale_adder_gradients_
from adderize.training.recalibration import recalibrate, tracking_norms

_RECALIBRATION_BATCHES = 50


@dataclass(frozen=True)
class Tuning:
    """How a network is trained whose filters lie inside the range of their inputs.

    The rates are for layers with the gradient ``"sign_input"``: with ``"full"``, which is right for
    filters outside that range only, the first steps destroy what was transferred.

    Attributes:
        epochs: passes over the images.
        lr: learning rate of SGD; falls to 0 along a half cosine.
        eta: root mean square of the adder filters' scaled gradients.
        flip: whether images are mirrored at random, besides being shifted by up to 4 pixels, with
            the mean colour (zeros) at the border.
        seed: for the order of the images and their augmentation.
    """

    epochs: int
    lr: float = 0.05
    eta: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    flip: bool = True
    seed: int = 0


def fine_tune(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    tuning: Tuning,
    *,
    progress: bool = True,
) -> None:
    """Train an adder network in place.

    The statistics of its batch norms are then estimated on images that are augmented as those of
    the training: on plain ones they cost half a point.

    Args:
        teacher: gives the targets where there are no labels.
        images: (N, C, H, W), normalised.
        labels: (N,) int64; None to learn the teacher's probabilities instead.

    Raises:
        AdderizeError: the training diverges.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=tuning.lr,
        momentum=tuning.momentum,
        weight_decay=tuning.weight_decay,
    )
    batches = _batches(images, tuning)
    steps = tuning.epochs * max(1, len(images) // tuning.batch_size)
    model.train()
    teacher.eval()
    with counter(steps, "fine-tuning", show=progress) as bar:
        for step, (picked, crops) in enumerate(islice(batches, steps)):
            optimizer.param_groups[0]["lr"] = tuning.lr * (1 + math.cos(math.pi * step / steps)) / 2
            batch = crop_and_flip(images[picked].to(device), crops)
            loss = _loss(
                model(batch.clone()), teacher, batch, None if labels is None else labels[picked]
            )
            optimizer.zero_grad()
            loss.backward()
            scale_adder_gradients_(model, tuning.eta)
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if not math.isfinite(loss.item()):
                raise AdderizeError(
                    f"the fine-tuning diverged at step {step + 1}: lower the learning rate"
                )
    if tracking_norms(model):
        some = islice(batches, _RECALIBRATION_BATCHES)
        recalibrate(model, (crop_and_flip(images[picked], crops) for picked, crops in some))
    model.eval()


def _batches(images: Tensor, tuning: Tuning) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of each batch's images, every epoch in another order, and their crops; endless."""
    generator = torch.Generator().manual_seed(tuning.seed)
    count = max(1, len(images) // tuning.batch_size)
    while True:
        order = torch.randperm(len(images), generator=generator)
        for number in range(count):
            picked = order[number::count][: tuning.batch_size]
            crops = draw_crops(len(picked), generator)
            if not tuning.flip:
                crops[:, 2] = 0
            yield picked, crops


def _loss(logits: Tensor, teacher: nn.Module, batch: Tensor, labels: Tensor | None) -> Tensor:
    if labels is not None:
        return F.cross_entropy(logits, labels.to(logits.device))
    with torch.no_grad():
        targets = teacher(batch).softmax(1)
    return F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")
