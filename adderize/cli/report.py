"""`adderize report`: one page about a network, to read and to send on."""

from __future__ import annotations

import argparse
from pathlib import Path

from adderize.checkpoints import named
from adderize.cli.images import image_statistics, images, normalisation
from adderize.cli.messages import note
from adderize.cli.shared_options import (
    add_conversion_options,
    add_cost_options,
    add_image_options,
    add_network_arguments,
    arch_options,
    check_apart,
    conversion_options,
    load_network,
    output_file,
)
from adderize.models import by_name
from adderize.reporting import report

HELP = "one page about a network: plan, operations, energy, layers, 8 bits, what to mend"
EXAMPLES = (
    "adderize report resnet18 -o report.html",
    "adderize report runs/cifar/version_0 --arch resnet20 --data data/cifar10 -o report.html",
    "adderize report timm:mobilenetv2_100 --data photographs --limit 64 -o report.html",
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, fresh=True)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=output_file, required=True,
        help="the page, in HTML; it needs no other file and no network",
    )  # fmt: skip
    add_image_options(
        parser, "images to measure on", limit=128,
        without="inputs, outputs, saturation and the errors in 8 bits are left out",
    )  # fmt: skip
    add_cost_options(parser)
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    check_apart(arguments.output, arguments.model)
    options = conversion_options(arguments)
    if named.has_weights(arguments.model, arguments.arch):
        loaded, options = load_network(arguments, **options), {}
    else:
        model = by_name.build(arguments.model, **arch_options(arguments))
        loaded = named.Loaded(model, arguments.model)
    size = arguments.input or by_name.input_size(loaded.arch, loaded.model)
    batch, source = None, ""
    if arguments.data:
        batch = images(arguments, loaded.arch, loaded.model)
        statistics = image_statistics(arguments, loaded.model, size)
        source = f"{Path(arguments.data).resolve().name}, {normalisation(statistics)}"
    found = report(
        loaded.model,
        batch,
        name=_title(arguments.model, loaded.arch),
        source=source,
        input_size=size,
        energy=arguments.energy,
        latency=arguments.latency,
        **options,
    )
    for part, reason in found.absent.items():
        note(f"without {part}: {reason}")
    found.save(arguments.output)
    note(f"wrote {arguments.output}")
    return 0


def _title(target: str, arch: str) -> str:
    """Without the folders on the way, which are nobody's business where the page is sent."""
    return target if target == arch else f"{Path(target).resolve().name} ({arch})"
