"""`adderize plan ARCH`: which layers would become adders or binary, and why."""

from __future__ import annotations

import argparse

from adderize.cli.shared_options import (
    add_arch_options,
    add_conversion_options,
    add_format,
    add_layers,
    arch_options,
    conversion_options,
)
from adderize.models.by_name import FORMS, build
from adderize.surgery import plan

HELP = "which layers of a model would become adders or binary, and why"
EXAMPLES = (
    "adderize plan resnet18",
    'adderize plan timm:mobilenetv2_100 --exclude "*.conv_dw" --format csv',
    "adderize plan resnet18 --layers bnn",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="ARCH", help=FORMS)
    add_arch_options(parser)
    add_format(parser)
    add_layers(parser)
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    # With values: the plan remarks on parameters that start at zero.
    model = build(arguments.model, **arch_options(arguments))
    target = "binary" if arguments.layers == "bnn" else "adder"
    found = plan(model, target=target, **conversion_options(arguments))
    print(found.render(arguments.format))
    return 0
