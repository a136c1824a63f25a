"""Logit distillation: a student also follows a trained teacher's softened answers."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderizeError, load_model
from adderize.arguments import checked_statistics
from adderize.checkpoints import named
from adderize.models.by_name import build, options_from, own_input_size
from recipes import run
from recipes.batches import ImageData


class Distillation:
    """Hinton et al., Distilling the Knowledge in a Neural Network (2015).

    ``weight * T**2 * KL(teacher / T || student / T) + (1 - weight) * loss``. Not a module: the
    teacher is neither trained nor saved with the student.

    Args:
        teacher: gives logits (N, classes) for a batch.
        temperature: T, above 0.
        weight: of the teacher's part, 0 to 1.
        from_statistics, to_statistics: mean and deviation of pixels that the student's images, and
            the teacher's, are normalised with.
        size: height and width of the teacher's images; None for those of the student's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float,
        weight: float,
        from_statistics: tuple[Sequence[float], Sequence[float]],
        to_statistics: tuple[Sequence[float], Sequence[float]],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight
        self._size = size
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in from_statistics)
        to_mean, to_std = (torch.tensor(values).view(-1, 1, 1) for values in to_statistics)
        self._scale, self._shift = std / to_std, (mean - to_mean) / to_std

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits for images normalised as the student's, resized to its size."""
        images = images * self._scale + self._shift
        if self._size and self._size != images.shape[2:]:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        logits: Tensor = self.teacher(images)
        return logits

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The student's loss on the labels, mixed with its distance from the teacher."""
        T = self.temperature
        student = F.log_softmax(logits.float() / T, dim=1)
        teacher = F.log_softmax(self.teach(images).float() / T, dim=1)
        distance = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.weight * T**2 * distance + (1 - self.weight) * loss


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kd-teacher",
        metavar="ARCH|PATH",
        help="a trained teacher: a network with published weights, a run's folder or checkpoint, "
        "or a PyTorch file",
    )
    group.add_argument(
        "--kd-arch",
        metavar="ARCH",
        help="the teacher's network, for a PyTorch file or code of your own",
    )
    group.add_argument("--kd-arch-options", nargs="+", default=[], metavar="KEY=VALUE")
    group.add_argument(
        "--kd-temperature", type=run.positive_float, default=1.0, help="(default: %(default)s)"
    )
    group.add_argument(
        "--kd-weight",
        type=run.share,
        default=0.3,
        help="of the teacher beside the labels (default: %(default)s)",
    )
    group.add_argument(
        "--kd-mean",
        type=float,
        nargs="+",
        help="of the pixels as the teacher was trained (default: as timm says of weights that it "
        "publishes, or else as the student)",
    )
    group.add_argument("--kd-std", type=run.positive_float, nargs="+")


def from_arguments(arguments: argparse.Namespace, data: ImageData) -> Distillation | None:
    """What the options of :func:`add_arguments` ask for.

    Raises:
        AdderizeError: a teacher that cannot be loaded, or statistics of other channels.
    """
    if arguments.kd_teacher is None:
        return None
    _check(arguments.kd_mean or data.mean, arguments.kd_std or data.std, data)
    teacher = _teacher(arguments, data.num_classes)
    said = {} if Path(arguments.kd_teacher).exists() else _configuration(teacher)
    mean = arguments.kd_mean or said.get("mean") or data.mean
    std = arguments.kd_std or said.get("std") or data.std
    _check(mean, std, data)
    return Distillation(
        teacher,
        temperature=arguments.kd_temperature,
        weight=arguments.kd_weight,
        from_statistics=(data.mean, data.std),
        to_statistics=(mean, std),
        size=_size(Path(arguments.kd_teacher), teacher, data.num_classes),
    )


def _check(mean: Sequence[float], std: Sequence[float], data: ImageData) -> None:
    try:
        checked_statistics(mean, std, len(data.mean))
    except AdderizeError as error:
        raise AdderizeError(f"--kd-mean and --kd-std: {error}") from error


def _size(source: Path, teacher: nn.Module, num_classes: int) -> tuple[int, int] | None:
    """Height and width of the images that the teacher was trained on; None where nothing says."""
    with contextlib.suppress(OSError, ValueError):
        if side := json.loads((source / run.ARGUMENTS).read_text()).get("image_size"):
            return side, side
    # What timm says of a network is of the weights that it publishes, with their classes.
    if _configuration(teacher).get("num_classes", num_classes) != num_classes:
        return None
    size = own_input_size(teacher)
    return (size[1], size[2]) if size else None


def _configuration(teacher: nn.Module) -> dict[str, Any]:
    """timm's, empty for other networks."""
    found = getattr(teacher, "default_cfg", None)
    return found if isinstance(found, dict) else {}


def _teacher(arguments: argparse.Namespace, num_classes: int) -> nn.Module:
    source = Path(arguments.kd_teacher)
    options = options_from(arguments.kd_arch_options)
    try:
        if source.exists():
            return _stored_teacher(arguments, source, {"num_classes": num_classes, **options})
        arch = arguments.kd_arch or arguments.kd_teacher
        model = build(arch, num_classes=num_classes, **options)
        return named.start_from(model, arch, named.PUBLISHED)
    except AdderizeError as error:
        raise AdderizeError(f"--kd-teacher {source} is not a usable teacher: {error}") from error


def _stored_teacher(
    arguments: argparse.Namespace, source: Path, options: dict[str, Any]
) -> nn.Module:
    checkpoint = source / run.CHECKPOINTS / "last.ckpt"
    finished = checkpoint.is_file() and (source / "model").is_dir()
    file = checkpoint if checkpoint.is_file() else source
    # A run's checkpoint says itself what it is of.
    arch = arguments.kd_arch or (None if file.suffix == ".ckpt" else arguments.arch)
    trusted = (arguments.arch,)
    model = named.load(
        str(file), arch, arch_options=options, trusted=trusted, otherwise={"exclude": "*"}
    ).model
    # The weights that a run ends with, with statistics of norms that do not lag behind.
    return load_model(model, source / "model") if finished else model
