"""The images that `--data` names, as a network takes them."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from adderize.cli.messages import note
from adderize.data.image_sources import class_folders, load_labelled
from adderize.data.normalisation import Statistics, usual_statistics
from adderize.errors import AdderizeError
from adderize.evaluation import device_of, evaluation
from adderize.models.by_name import input_size


def images(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str = "test",
    *,
    limit: int | None = None,
    again: bool = False,
) -> Tensor:
    """The images of `--data`, in the form that a network takes; `--limit` of them at most.

    `again`, for a second split: what they are normalised with was said already.
    """
    return _read(arguments, arch, model, split, limit or arguments.limit, again=again)[0]


def labelled_images(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str,
    *,
    limit: int | None = None,
    again: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`images`, and their labels where they have some that the network's outputs can
    be."""
    found, labels = _read(arguments, arch, model, split, limit or arguments.limit, again=again)
    classes = _outputs(model, found[:1])
    if labels is None or classes is None:
        return found, labels
    folders = class_folders(arguments.data, split)
    if folders not in (None, classes) or int(labels.max()) >= classes:
        has = f"{folders} class folders" if folders else f"labels up to {int(labels.max())}"
        note(f"{arguments.data} has {has}, the network {classes} classes: its labels are left out")
        return found, None
    return found, labels


def _outputs(model: nn.Module, image: Tensor) -> int | None:
    """How many logits a network gives; None where it gives something else, or fails."""
    device = device_of(model)
    try:
        with torch.no_grad(), evaluation(model):
            logits = model(image.to(device, copy=True))
    except Exception:  # which is told where the network is used
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _read(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str,
    limit: int,
    *,
    again: bool,
) -> tuple[Tensor, Tensor | None]:
    shape = arguments.input or input_size(arch, model)
    statistics = image_statistics(arguments, model, shape)
    found = load_labelled(arguments.data, shape, statistics, limit=limit, split=split)
    if not again and None in (arguments.mean, arguments.std):
        note(f"images {normalisation(statistics)}")
    return found


def image_statistics(
    arguments: argparse.Namespace, model: nn.Module, shape: tuple[int, ...]
) -> Statistics:
    """What images (C, H, W) are normalised with: `--mean` and `--std`, else what is usual."""
    mean, std = arguments.mean, arguments.std
    if mean is None or std is None:
        usual = usual_statistics(model, shape)
        mean, std = mean or usual.mean, std or usual.std
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, shape[0]):
            expected = "1" if shape[0] == 1 else f"1, or {shape[0]}: one for each channel"
            raise AdderizeError(f"{flag} has {len(values)} values; expected {expected}")
    return Statistics(*(values * (shape[0] // len(values)) for values in (mean, std)))


def normalisation(statistics: Statistics) -> str:
    """In words."""
    mean, std = (",".join(f"{value:g}" for value in values) for values in statistics)
    return f"normalised with mean {mean} and deviation {std}"
