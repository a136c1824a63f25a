"""`adderize inspect`: what goes on in every layer of a network, and what is wrong there."""

from __future__ import annotations

import argparse

from adderize.cli.images import images
from adderize.cli.shared_options import (
    add_conversion_options,
    add_format,
    add_image_options,
    add_network_arguments,
    conversion_options,
    load_network,
)
from adderize.errors import AdderizeError
from adderize.inspection import inspect
from adderize.integer.integer_report import report_of_shifts

HELP = "ranges, outputs and norms of every layer, and what keeps a network from training"
EXAMPLES = (
    "adderize inspect resnet18 --stem",
    "adderize inspect runs/cifar/version_0 --arch resnet20 --data data/cifar10",
    "adderize inspect resnet20.pth --arch resnet20 --data photographs --limit 64 --format json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, fresh=True)
    add_image_options(
        parser, "images to measure on", limit=256, without="only filters and norms are shown"
    )
    add_format(parser)
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.data and (arguments.input or arguments.mean or arguments.std):
        raise AdderizeError("--input, --mean and --std are of images: name some by --data")
    loaded = load_network(arguments, **conversion_options(arguments))
    if (report := report_of_shifts(loaded.model)) is not None:
        if arguments.data:
            raise AdderizeError("a network of shifts has nothing to measure: leave out --data")
        print(report.render(arguments.format))
        return 0
    batch = images(arguments, loaded.arch, loaded.model) if arguments.data else None
    print(inspect(loaded.model, batch, name=arguments.model).render(arguments.format))
    return 0
