"""An exported adder network beside a convolutional one of its shape, in instructions.

    python -m benchmarks.riscv FOLDER [--images images.pt]

FOLDER holds an integer network, as ``adderize quantize --integer`` writes it. The convolutional
network has its layers, with bytes as weights, and its C: the same loops, filters in the same order,
results scaled by the same shifts; only ``|x - w|`` is ``x * w`` with a signed w. For a core without
a multiplier the compiler calls the shift-and-add loop of its library. A kept layer on bytes counts
as a convolution too, one on int32 stays as it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adderize.checkpoints.folders import load_model
from adderize.errors import AdderizeError
from adderize.export import export_c
from adderize.export.c.riscv import (
    RV32I,
    Core,
    build_counter,
    build_for_riscv,
    run_on_riscv,
)
from adderize.integer import Instruction, IntegerNetwork, Program
from adderize.tables import Table

_DISTANCE = """static uint32_t distance(int32_t value, int32_t tap) {
  int32_t difference = value - tap;
  return (uint32_t)(difference < 0 ? -difference : difference);
}"""
_PRODUCT = """static uint32_t distance(int32_t value, int32_t tap) {
  return (uint32_t)((int8_t)tap * value);
}"""
_RV32IM = Core("rv32im", "ilp32", emulated="rv32")


def as_convolutions(program: Program) -> Program:
    """Kept layers on bytes become layers with filters of bytes, as adders have."""
    slots = program.slots
    return replace(
        program,
        instructions=tuple(
            _with_filters(step)
            if step.kind.startswith("shift") and slots[step.inputs[0]].dtype == "uint8"
            else step
            for step in program.instructions
        ),
    )


def _with_filters(step: Instruction) -> Instruction:
    shape = step.tensors["shifts"].shape[1:]
    weight = (128 + 32 * torch.randn(shape)).round().clamp(0, 255).byte()
    one = torch.ones(1, shape[0], dtype=torch.int8)
    settings = {name: value for name, value in step.settings.items() if name != "least"}
    settings |= {"fraction": 0, "low": -(2**24), "high": 2**24, "levels": 255}
    if step.kind == "shift_conv":
        settings["zero"] = 0
    return replace(
        step,
        kind=step.kind.replace("shift", "adder"),
        settings=settings,
        tensors={
            "weight": weight,
            "shifts": torch.zeros_like(one),
            "signs": one,
            "bias": torch.zeros_like(step.tensors["bias"]),
        },
    )


def instructions_of(
    network: IntegerNetwork, core: Core, images: Tensor, *, products: bool = False
) -> int:
    """Of one image, on average."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_c(network, folder, name="network")
        options: tuple[str, ...] = ()
        if products:
            layers = folder / "adderize_layers.c"
            text = layers.read_text()
            assert _DISTANCE in text
            layers.write_text(text.replace(_DISTANCE, _PRODUCT))
            options = ("-lgcc",)
        program = build_for_riscv(
            network.program, folder, "network", folder / "program", core, options
        )
        counter = build_counter(folder / "counter.so")
        counts = [
            run_on_riscv(program, images[:count], core, counter).instructions
            for count in (0, len(images))
        ]
    return round((counts[1] - counts[0]) / len(images))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="of an integer network")
    parser.add_argument("--images", help="a file of torch.save, uint8 (N, C, H, W); else noise")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    try:
        network = load_model(arguments.folder)
    except AdderizeError as error:
        parser.error(str(error))
    images = (
        torch.load(arguments.images)
        if arguments.images
        else torch.randint(0, 256, (2, *network.input_size), dtype=torch.uint8)
    )
    convolutions = IntegerNetwork(as_convolutions(network.program))
    rows = [
        ("adders and shifts", RV32I, network, False),
        ("adders and shifts", _RV32IM, network, False),
        ("int8 convolutions", RV32I, convolutions, True),
        ("int8 convolutions", _RV32IM, convolutions, True),
    ]
    first = 0
    cells = []
    for name, core, model, products in rows:
        count = instructions_of(model, core, images, products=products)
        first = first or count
        cells.append([name, core.march, f"{count:,}", f"{count / first:.2f}"])
    header = ["network", "core", "instructions an image", "relative"]
    print(Table(header, cells, texts=2).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
