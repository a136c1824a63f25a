"""A start from a trained convolutional network that keeps what it knows: ``--transfer``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from torch import nn

from adderize.checkpoints.named import start_from
from adderize.errors import AdderizeError
from adderize.models.by_name import build, options_from
from adderize.transfer import match, reconstruct
from recipes.batches import ImageData

TRANSFERS = ("rescale", "match", "reconstruct")
_IMAGES = 2048


def add_argument(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--transfer",
        choices=TRANSFERS,
        help="how the adders start from the convolutions of --pretrained: their filters scaled, "
        "which trains with --gradient full; or matched to them or reconstructed layer by layer on "
        "2,048 training images, which trains with --gradient sign_input at a low rate (see the "
        "preset cifar-transfer)",
    )


def fitting_gradient(arguments: argparse.Namespace) -> str:
    """The gradient mode that fits the filters that a run starts with."""
    inside = getattr(arguments, "transfer", None) in ("match", "reconstruct")
    return "sign_input" if inside else "full"


def conversion_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the conversion, those of --transfer among them.

    Raises:
        AdderizeError: --transfer and --pretrained without what they need.
    """
    options = {"init": arguments.init, "gradient": arguments.gradient}
    if arguments.transfer is None:
        if arguments.pretrained and arguments.init == "normal":
            raise AdderizeError(
                "--init normal would draw new filters over those of --pretrained: use --init "
                "rescale, or --transfer"
            )
        return options
    if not arguments.pretrained:
        raise AdderizeError(
            f"--transfer {arguments.transfer} needs a trained network: --pretrained"
        )
    return {"init": "rescale", "gradient": arguments.gradient}


def carry_over(
    arguments: argparse.Namespace, data: ImageData, device: str
) -> Callable[[nn.Module], None] | None:
    """What --transfer does to the fresh network; None where there is nothing to do."""
    if arguments.transfer in (None, "rescale") or arguments.resume:
        return None
    builder = {"num_classes": data.num_classes, **options_from(arguments.arch_options)}
    batches = -(-_IMAGES // data.batch_size)

    def start(model: nn.Module) -> None:
        teacher = start_from(build(arguments.arch, **builder), arguments.arch, arguments.pretrained)
        model.to(device)
        images = data.recalibration_images(batches, next(model.parameters()).device)
        options: dict[str, Any] = {"images": _IMAGES, "gradient": None}
        if arguments.transfer == "match":
            report = match(model, teacher.to(device), images, **options)
        else:
            options["seed"] = arguments.seed
            report = reconstruct(model, teacher.to(device), images, **options)
        print(report, flush=True)
        model.cpu()

    return start
