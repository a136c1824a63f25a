"""`adderize transfer`: from a trained network to a saved adder network."""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adderize.checkpoints import named
from adderize.checkpoints.folders import save_model
from adderize.checkpoints.model_card import ModelCard
from adderize.cli.images import images as images_of
from adderize.cli.images import labelled_images
from adderize.cli.messages import note
from adderize.cli.shared_options import (
    add_arch_options,
    add_conversion_options,
    add_format,
    add_image_options,
    arch_options,
    check_apart,
    conversion_options,
    output_folder,
    positive,
    usable_device,
)
from adderize.data.image_sources import evenly_spaced
from adderize.errors import AdderizeError, writing
from adderize.models import by_name
from adderize.models.by_name import FORMS
from adderize.quantize import quantize
from adderize.surgery import adderize
from adderize.tables import json_text
from adderize.training.adaptive_rate import check_eta
from adderize.training.recalibration import recalibrate, tracking_norms
from adderize.transfer import TransferReport, match, reconstruct
from adderize.transfer.stages import Stage, Stages
from adderize.transfer.tuning import Tuning, fine_tune
from adderize.whole_files import write_whole

HELP = "turn a trained network into an adder network that keeps what it knows"
EXAMPLES = (
    "adderize transfer resnet18 --weights published --data imagenet --labels -o resnet18-adder",
    "adderize transfer resnet20 --weights cnn.pth --data cifar10 -o out --arch-options shortcut=A "
    "logits_norm=false",
)
STATE, REPORT, BYTES = "transfer-state.pt", "transfer.json", "int8"
_BATCH = 128


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arch", metavar="ARCH", help=FORMS)
    add_arch_options(parser)
    parser.add_argument(
        "--weights", required=True, metavar="PATH|published",
        help="the trained network's: a PyTorch or safetensors file, a folder that save_model "
        "wrote, hf://owner/name, or those that torchvision or timm publish",
    )  # fmt: skip
    add_image_options(parser, "training images, and test images to compare on", limit=50000)
    parser.add_argument(
        "-o", "--output", type=output_folder, metavar="FOLDER", required=True,
        help=f"gets the adder network, {REPORT}, and the 8-bit network in {BYTES}/; a stopped "
        "command that is given again goes on from there",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("match", "reconstruct"), default="reconstruct",
        help="reconstruct (default) fits each layer to the trained one; match is faster and keeps "
        "less",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=positive, default=300, metavar="N", help="steps for each layer (300)"
    )
    parser.add_argument(
        "--images", type=positive, default=2048, metavar="N",
        help="images to match or reconstruct on (2048)",
    )  # fmt: skip
    parser.add_argument(
        "--labels", action="store_true",
        help="use the data's labels: for top-1 in the table and for --epochs",
    )  # fmt: skip
    _configure_tuning(parser.add_argument_group("fine-tuning"))
    parser.add_argument(
        "--test-images", type=positive, default=2000, metavar="N",
        help="images to compare on (2000)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of the order of the images, and of their flips and shifts (0)",
    )  # fmt: skip
    parser.add_argument("--device", default=None, help="such as cpu or cuda (cuda where there is)")
    add_format(parser, ("table", "json"))
    add_conversion_options(parser)


def _configure_tuning(tuning: argparse._ArgumentGroup) -> None:
    tuning.add_argument(
        "--epochs", type=int, default=0, metavar="N",
        help="passes over the training images (0); without --labels the trained network's outputs "
        "are the targets",
    )  # fmt: skip
    tuning.add_argument(
        "--lr", type=float, default=0.05, metavar="RATE", help="learning rate at the start (0.05)"
    )
    tuning.add_argument(
        "--eta", type=float, default=0.1, help="root mean square of the filters' gradients (0.1)"
    )
    tuning.add_argument(
        "--batch-size", type=positive, default=128, metavar="N", help="images of a step (128)"
    )
    tuning.add_argument(
        "--no-flip", dest="flip", action="store_false", help="never mirror images (digits, text)"
    )


def run(arguments: argparse.Namespace) -> int:
    _check_numbers(arguments)
    check_apart(arguments.output, arguments.weights)
    teacher = _teacher(arguments)
    images, labels = _split(arguments, teacher, "train")
    test, test_labels = _split(arguments, teacher, "test", limit=arguments.test_images, again=True)
    few = images[evenly_spaced(len(images), arguments.images)]
    stages = Stages(teacher, test, test_labels)
    folder = arguments.output
    model, report = _transferred(arguments, teacher, few, stages, folder)
    if arguments.epochs:
        tuning = Tuning(
            epochs=arguments.epochs, lr=arguments.lr, eta=arguments.eta, flip=arguments.flip,
            batch_size=arguments.batch_size, seed=arguments.seed,
        )  # fmt: skip
        fine_tune(model, teacher, images, labels, tuning)
        stages.add("fine-tuned", model)
    save_model(model.cpu(), folder, card=_card(arguments, stages.rows[-1]))
    # The kernels on bytes are the CPU's.
    eight_bit = quantize(model, few.split(_BATCH))
    last = stages.add("8 bits", eight_bit)
    save_model(eight_bit, folder / BYTES, card=_card(arguments, last))
    result = {**stages.to_dict(), "transfer": report.to_dict()}
    write_whole(folder / REPORT, json_text(result) + "\n")
    (folder / STATE).unlink(missing_ok=True)
    print(json_text(result) if arguments.format == "json" else f"{report}\n\n{stages}")
    note(f"saved in {folder}, in 8 bits in {folder / BYTES}")
    return 0


def _split(
    arguments: argparse.Namespace, teacher: nn.Module, split: str, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Images, and labels where they are asked for: of others nothing is said."""
    if not arguments.labels:
        return images_of(arguments, arguments.arch, teacher, split, **options), None
    found, labels = labelled_images(arguments, arguments.arch, teacher, split, **options)
    if labels is None:
        raise AdderizeError(
            f"{arguments.data} has no labels for the network's classes: leave --labels out"
        )
    return found, labels


def _card(arguments: argparse.Namespace, stage: Stage) -> ModelCard:
    data = Path(arguments.data).resolve().name
    return ModelCard(
        title=f"{arguments.arch} as an adder network",
        base_model=named.hub_name(arguments.arch, arguments.weights),
        dataset=(data, data),
        metrics={} if stage.top1 is None else {"accuracy": round(stage.top1 / 100, 6)},
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    minimum = {"images": 2, "epochs": 0, "batch_size": 2}
    for name, count in minimum.items():
        if getattr(arguments, name) < count:
            flag = "--" + name.replace("_", "-")
            raise AdderizeError(f"{flag} is {getattr(arguments, name)}; expected {count} or more")
    check_eta(arguments.eta)
    if not 0 < arguments.lr < math.inf:
        raise AdderizeError(f"--lr is {arguments.lr}; expected a number above 0, such as 0.05")


def _teacher(arguments: argparse.Namespace) -> nn.Module:
    device = usable_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = by_name.build(arguments.arch, **arch_options(arguments))
    return named.start_from(model, arguments.arch, arguments.weights).to(device).eval()


def _transferred(
    arguments: argparse.Namespace, teacher: nn.Module, few: Tensor, stages: Stages, folder: Path
) -> tuple[nn.Module, TransferReport]:
    model = adderize(teacher, inplace=False, **conversion_options(arguments))
    # The transfer itself keeps the statistics of the norms before the first adder.
    converted = copy.deepcopy(model)
    if tracking_norms(converted):
        recalibrate(converted, map(Tensor.clone, few.split(_BATCH)))
    stages.add("converted", converted)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"images": len(few), "state": folder / STATE}
    if arguments.method == "match":
        report = match(model, teacher, few, **options)
    else:
        options |= {"steps": arguments.steps, "seed": arguments.seed}
        report = reconstruct(model, teacher, few, **options)
    stages.add("matched" if arguments.method == "match" else "reconstructed", model)
    return model, report
