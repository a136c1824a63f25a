"""Integer networks as ``$readmemh`` files: what a hardware designer's testbench reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from adderize.arguments import own_path
from adderize.integer import Instruction, IntegerNetwork
from adderize.integer.integer_network import check_integer_network
from adderize.whole_files import replaced_files

CONTENTS = "contents.json"


def export_hex(
    integer_network: IntegerNetwork, folder: str | os.PathLike[str], *, examples: Tensor
) -> dict[str, Any]:
    """Write an integer network's constants, and what each of its tensors holds for some images.

    A file has a value a line, in C order of its shape, in two's complement: two hexadecimal digits
    for 8 bits, eight for 32. ``contents.json`` lists the instructions in order of execution with
    their settings, as :mod:`adderize.integer.program` describes them, and the file, shape and
    dtype of every array.

    Args:
        integer_network: from :func:`adderize.integer.to_integer`.
        folder: is made where it is missing. Files of the same names are replaced, all or none; a
            folder without ``contents.json`` is what a process that was killed meanwhile left.
        examples: images, uint8 (N, C, H, W). The files of a slot hold all of them, one behind the
            other.

    Returns:
        the contents.

    Raises:
        AdderizeError: not an integer network, or not images of it; a folder that cannot be written
            to.
    """
    check_integer_network(integer_network)
    program = integer_network.program
    values = integer_network.values(examples)
    with replaced_files(own_path(folder), CONTENTS) as unfinished:
        slots = [
            _written(unfinished, f"slot_{number:03}", values[number])
            for number in range(len(values))
        ]
        contents = {
            "input": program.input,
            "output": program.output,
            "examples": len(examples),
            "logit_scale": program.logit_scale,
            "logit_zero": program.logit_zero,
            "slots": slots,
            "instructions": [
                _instruction(unfinished, number, instruction)
                for number, instruction in enumerate(program.instructions)
            ],
        }
        (unfinished / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n")
    return contents


def _instruction(folder: Path, number: int, instruction: Instruction) -> dict[str, Any]:
    return {
        "kind": instruction.kind,
        "layer": instruction.layer,
        "inputs": instruction.inputs,
        "output": instruction.output,
        "settings": dict(instruction.settings),
        "tensors": {
            name: _written(folder, f"layer_{number:03}_{name}", tensor)
            for name, tensor in instruction.tensors.items()
        },
    }


def _written(folder: Path, name: str, tensor: Tensor) -> dict[str, Any]:
    array = tensor.numpy()
    digits = 2 * array.itemsize
    mask = 16**digits - 1
    lines = (f"{value & mask:0{digits}x}\n" for value in array.reshape(-1).tolist())
    (folder / f"{name}.hex").write_text("".join(lines))
    return {"file": f"{name}.hex", "shape": list(array.shape), "dtype": array.dtype.name}
