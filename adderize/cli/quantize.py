"""`adderize quantize`: a saved network into 8-bit integers."""

from __future__ import annotations

import argparse
import json

from adderize.checkpoints import named
from adderize.checkpoints.folders import save_model
from adderize.cli.shared_options import add_image_options, images, note
from adderize.data.image_sources import SOURCES
from adderize.models.by_name import FORMS
from adderize.quantize import quantize, quantize_report

HELP = "put a trained adder network into 8-bit integers"
_BATCH = 32


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="CHECKPOINT",
        help="a folder that save_model wrote, a checkpoint of Lightning or of the AdderNet "
        "authors' code, or a state dict",
    )  # fmt: skip
    parser.add_argument("--arch", metavar="ARCH", help=f"what the weights belong to: {FORMS}")
    parser.add_argument(
        "--data", metavar="PATH", required=True,
        help=f"images to calibrate on, training ones where there are any: {SOURCES}",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, help="where the result is saved"
    )
    parser.add_argument(
        "--method", choices=("minmax", "percentile", "mse"), default="minmax",
        help="how ranges follow from the images (minmax)",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=int, choices=range(2, 9), default=8, help="of inputs and filters (8)"
    )
    add_image_options(parser, limit=1024)
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    loaded = named.load(arguments.model, arguments.arch)
    if loaded.note:
        note(loaded.note)
    batches = images(arguments, loaded.arch, loaded.model, split="train").split(_BATCH)
    quantized = quantize(
        loaded.model, batches, method=arguments.method, bits=arguments.bits, inplace=True
    )
    save_model(quantized, arguments.output)
    report = quantize_report(quantized)
    print(json.dumps(report.to_dict(), indent=2) if arguments.format == "json" else report)
    note(f"saved in {arguments.output}")
    return 0
