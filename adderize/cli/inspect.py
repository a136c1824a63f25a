"""`adderize inspect`: what goes on in every layer of a network, and what is wrong there."""

from __future__ import annotations

import argparse
import sys

from torch import Tensor, nn

from adderize.architectures import FORMS, input_size
from adderize.cli.options import add_conversion_options, conversion_options, numbers, size
from adderize.images import SOURCES, Statistics, load_images, usual_statistics

HELP = "ranges, outputs and norms of every layer, and what keeps a network from training"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="CHECKPOINT|ARCH",
        help="a folder that save_model wrote, a checkpoint of Lightning or of the AdderNet "
        "authors' code, a state dict, or an architecture with fresh weights",
    )  # fmt: skip
    parser.add_argument("--arch", metavar="ARCH", help=f"what the weights belong to: {FORMS}")
    parser.add_argument(
        "--data", metavar="PATH",
        help=f"images to measure on: {SOURCES}; without it only filters and norms are shown",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=256, metavar="N", help="images at most")
    parser.add_argument("--input", type=size, metavar="C,H,W", help="default: the model's own")
    parser.add_argument(
        "--mean", type=numbers, metavar="M,...",
        help="that pixels in [0, 1] are normalised with (default: the model's own; else MNIST's "
        "for one channel, CIFAR-10's for 3x32x32, or ImageNet's)",
    )  # fmt: skip
    parser.add_argument("--std", type=numbers, metavar="S,...", help="likewise")
    parser.add_argument("--format", choices=("table", "json", "csv", "md"), default="table")
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from adderize import checkpoints
    from adderize.inspection import inspect

    loaded = checkpoints.load(arguments.model, arguments.arch, **conversion_options(arguments))
    if loaded.note:
        _note(loaded.note)
    images = _images(arguments, loaded.arch, loaded.model) if arguments.data else None
    found = inspect(loaded.model, images, name=arguments.model)
    forms = {
        "table": found.__str__,
        "json": found.to_json,
        "csv": found.to_csv,
        "md": found.to_markdown,
    }
    print(forms[arguments.format]())
    return 0


def _images(arguments: argparse.Namespace, arch: str, model: nn.Module) -> Tensor:
    shape = arguments.input or input_size(arch, model)
    mean, std = arguments.mean, arguments.std
    if mean is None or std is None:
        usual = usual_statistics(model, shape)
        mean, std = mean or usual.mean, std or usual.std
        _note(f"images normalised with mean {_listed(mean)} and deviation {_listed(std)}")
    return load_images(arguments.data, shape, Statistics(mean, std), limit=arguments.limit)


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _note(text: str) -> None:
    print(f"adderize: {text}", file=sys.stderr)
