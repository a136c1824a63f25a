"""Sums and maxima over windows."""

from __future__ import annotations

from typing import Any, cast

from adderize.export.c.buffers import View, channels_last
from adderize.export.c.placing import Placing, size, unit
from adderize.export.c.steps import Fields, Step
from adderize.export.c.windows import window_fields
from adderize.integer.program import Instruction


def _pool(placing: Placing, instruction: Instruction) -> tuple[View, View, Fields, str]:
    """Input, output, windows and their description."""
    slot, settings = instruction.inputs[0], instruction.settings
    shape = placing.shape(slot)
    image = placing.ordered(slot, channels_last(shape), instruction.layer)
    kernel, (rows, columns) = cast(Any, (settings["kernel"], settings["padding"]))
    windows = window_fields(placing, instruction, shape, kernel, (columns, columns, rows, rows))
    output = placing.output(instruction)
    text = f"{size(shape)} -> {size(placing.shape(instruction.output))}"
    return image, output, windows, f"{text}, windows {kernel[0]} x {kernel[1]}"


def sum_pool(placing: Placing, instruction: Instruction) -> None:
    image, output, windows, text = _pool(placing, instruction)
    fields = {
        "pad": instruction.settings["pad"],
        "input_bytes": int(image.dtype == "uint8"),
        "drop": instruction.settings["drop"],
    }
    placing.steps.append(
        Step(
            "sum_pool",
            instruction.layer,
            f"sums, {text}",
            image,
            output,
            windows=windows,
            structure="sum",
            fields=fields,
            channels=windows["channels"],
        )
    )


def max_pool(placing: Placing, instruction: Instruction) -> None:
    image, output, windows, text = _pool(placing, instruction)
    function = f"max_pool_{unit(image.dtype)}"
    placing.steps.append(
        Step(function, instruction.layer, f"maxima, {text}", image, output, windows=windows)
    )
