"""`adderize export`: networks as C, as files for hardware simulators, as ONNX."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor

from adderize.checkpoints import named
from adderize.cli.messages import note
from adderize.cli.shared_options import add_arch_options, load_network, output_folder, refuse, size
from adderize.data.image_sources import SOURCES, load_labelled
from adderize.data.normalisation import Statistics
from adderize.errors import AdderizeError
from adderize.export import export_c, export_hex, export_onnx
from adderize.export.c.check import compare_on_host, measured
from adderize.export.c.report import CReport
from adderize.export.c.riscv import missing_tools
from adderize.export.c.writing import write_report
from adderize.integer import IntegerNetwork
from adderize.models.by_name import FORMS, input_size
from adderize.tables import shape_text

HELP = "write a network as C for processors that cannot multiply, as hex files, or as ONNX"
EXAMPLES = (
    "adderize export integers -o network --data data --check",
    "adderize export integers -o network --format hex --examples 2",
    "adderize export runs/cifar/version_0 --arch resnet20 --format onnx -o network",
)

_IMAGES = 4


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="CHECKPOINT",
        help="for c and hex the folder of an integer network (adderize quantize --integer); for "
        "onnx a float network, as adderize quantize takes it",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("c", "hex", "onnx"), default="c",
        help="C99, $readmemh files, or ONNX (c)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=output_folder, metavar="FOLDER", required=True, help="for the files"
    )
    parser.add_argument("--name", help="of the network in C and of the ONNX file (CHECKPOINT's)")
    parser.add_argument(
        "--data", metavar="PATH",
        help=f"images for the examples: {SOURCES}; without it they are noise",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=int, metavar="N", help=f"images that are written along ({_IMAGES})"
    )
    parser.add_argument(
        "--check", action="store_true",
        help="compile the C and compare its logits with PyTorch's, on RISC-V cores too where "
        "their compiler and emulator are installed",
    )  # fmt: skip
    parser.add_argument("--arch", metavar="ARCH", help=f"of onnx, of the weights: {FORMS}")
    add_arch_options(parser)
    parser.add_argument(
        "--input", type=size, metavar="C,H,W",
        help="of onnx, which takes one image of this size at a time (the model's own)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    integers = arguments.format in ("c", "hex")
    if integers and not named.is_integer_network(arguments.model):
        raise AdderizeError(
            f"{arguments.model} is not an integer network; expected a folder that "
            "adderize quantize --integer wrote"
        )
    loaded = load_network(arguments)
    stem = re.sub(r"\W", "_", Path(arguments.model).resolve().stem, flags=re.ASCII)
    name = arguments.name or stem
    if not integers:
        return _to_onnx(arguments, loaded, name)
    network = loaded.model
    assert isinstance(network, IntegerNetwork)
    examples = _examples(arguments, network)
    if arguments.format == "hex":
        contents = export_hex(network, arguments.output, examples=examples)
        print(f"{len(contents['instructions'])} instructions, {len(contents['slots'])} tensors")
    else:
        report = export_c(network, arguments.output, name=name, examples=examples)
        print(_checked(report, network, arguments.output, examples) if arguments.check else report)
    note(f"written to {arguments.output}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise AdderizeError for options that the format does not have: nothing would come of them."""
    form = arguments.format
    wrong = {
        "--check": arguments.check and form != "c",
        "--data": arguments.data and form == "onnx",
        "--examples": arguments.examples is not None and form == "onnx",
        "--arch": arguments.arch and form != "onnx",
        "--arch-options": arguments.arch_options and form != "onnx",
        "--input": arguments.input and form != "onnx",
    }
    given = [name for name, is_wrong in wrong.items() if is_wrong]
    refuse(f"--format {form}", given)
    if arguments.examples is not None and arguments.examples < 1:
        raise AdderizeError(f"--examples is {arguments.examples}; expected at least 1")


def _to_onnx(arguments: argparse.Namespace, loaded: named.Loaded, name: str) -> int:
    shape = arguments.input or input_size(loaded.arch, loaded.model)
    path = arguments.output / f"{name}.onnx"
    export_onnx(loaded.model, torch.zeros(1, *shape), path)
    note(f"written to {path}, for one image of {shape_text(shape)} at a time")
    return 0


def _examples(arguments: argparse.Namespace, network: IntegerNetwork) -> Tensor:
    """Raw bytes (N, C, H, W)."""
    shape, count = network.input_size, arguments.examples or _IMAGES
    if arguments.data is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    raw = Statistics((0.0,) * shape[0], (1.0,) * shape[0])
    pixels, _ = load_labelled(arguments.data, shape, raw, limit=count, split="test")
    values = (255 * pixels).round_()
    if not bool(((values >= 0) & (values <= 255)).all()):
        raise AdderizeError(
            f"{arguments.data} holds normalised images; expected pixels, such as bytes (uint8)"
        )
    return values.byte()


def _checked(report: CReport, network: IntegerNetwork, folder: Path, examples: Tensor) -> CReport:
    """The report with what was measured.

    Raises:
        AdderizeError: there is no compiler, or C does not compute what PyTorch computes.
    """
    comparisons = [compare_on_host(network, folder, report.name, examples)]
    missing = missing_tools()
    if missing:
        note(f"not run on RISC-V: no {', '.join(missing)}")
    else:
        report, on_cores = measured(report, network, folder, examples)
        comparisons += on_cores
        write_report(report, folder)
    for comparison in comparisons:
        note(str(comparison))
    if any(comparison.equal != comparison.images for comparison in comparisons):
        raise AdderizeError("C does not compute what PyTorch computes: please report it")
    return report
