"""`adderize plan ARCH`: which layers would become adders, and why."""

from __future__ import annotations

import argparse

from adderize.checkpoints import named
from adderize.cli.options import add_conversion_options, conversion_options
from adderize.surgery import plan
from adderize.tables import FORMATS

HELP = "which layers of a model would become adders, and why"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="ARCH", help="resnet50 (torchvision), timm:NAME or package.module:callable"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    found = plan(named.blank(arguments.model), **conversion_options(arguments))
    print(found.render(arguments.format))
    return 0
