"""`adderize plan ARCH`: which layers would become adders or binary, and why."""

from __future__ import annotations

import argparse

from adderize.cli.shared_options import (
    add_arch_options,
    add_conversion_options,
    add_format,
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
_TARGETS = {"adder": "adder", "bnn": "binary"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="ARCH", help=FORMS)
    add_arch_options(parser)
    add_format(parser)
    parser.add_argument(
        "--layers", choices=tuple(_TARGETS), default="adder",
        help="what the convolutions become: adders (default) or XNOR-Net's binary convolutions",
    )  # fmt: skip
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    # With values: the plan remarks on parameters that start at zero.
    model = build(arguments.model, **arch_options(arguments))
    target = _TARGETS[arguments.layers]
    found = plan(model, target=target, **conversion_options(arguments))
    print(found.render(arguments.format))
    return 0
