"""Instructions that move values, and those that take them one by one."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from adderize.export.c.buffers import View, as_lines, channels_last, plain
from adderize.export.c.placing import Placing, size, unit
from adderize.export.c.steps import Epilogue, Step
from adderize.integer.program import Instruction
from adderize.integer.strides import Integers


def rescale(placing: Placing, instruction: Instruction) -> None:
    slot = instruction.inputs[0]
    view = placing.views[slot]
    output = placing.output(instruction, view.order)
    epilogue = Epilogue.of(instruction.settings, instruction.tensors)
    outer, channels, inner = 1, 1, view.size
    if epilogue.channels > 1:
        each = view.order // (view.size // epilogue.channels)
        outer, chosen, inner = _periods(each)
        channels, epilogue = len(chosen), epilogue.chosen(chosen)
    text = "another scale" if len(instruction.inputs) == 1 else "sum of two"
    placing.steps.append(
        Step(
            "rescale",
            instruction.layer,
            f"{text}, {size(placing.shape(slot))}",
            view,
            output,
            other=placing.other(instruction, output),
            structure="scale",
            channels=channels,
            fields={
                "outer": outer,
                "channels": channels,
                "inner": inner,
                "input_bytes": int(view.dtype == "uint8"),
            },
            epilogue=epilogue,
        )
    )


def clamp(placing: Placing, instruction: Instruction) -> None:
    view = placing.views[instruction.inputs[0]]
    low, high = cast(tuple[int, int], (instruction.settings["low"], instruction.settings["high"]))
    text = f"within {low} .. {high}"
    if view.dtype == "uint8":
        low, high = (min(max(end, 0), 255) for end in (low, high))
    placing.steps.append(
        Step(
            f"clamp_{unit(view.dtype)}",
            instruction.layer,
            text,
            view,
            placing.output(instruction, view.order),
            numbers={"count": view.size, "low": low, "high": high},
        )
    )


def concat(placing: Placing, instruction: Instruction) -> None:
    shapes = [placing.shape(slot) for slot in instruction.inputs]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    flat = np.split(plain(int(ends[-1])), ends[:-1])
    dim = cast(int, instruction.settings["dim"])
    joined = np.concatenate(
        [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)], dim
    ).reshape(-1)
    output = placing.output(instruction)
    # Where in the output each value of the parts, one part behind the other, is to lie.
    targets = output.places[np.argsort(joined)]
    for position, (slot, part) in enumerate(zip(instruction.inputs, flat, strict=True)):
        view = placing.views[slot]
        name = f"{instruction.layer}_{position}"
        if as_lines(np.stack([plain(view.size), targets[part][view.order]], 1)) is None:
            view = placing.ordered(slot, channels_last(placing.shape(slot)), name)
        text = f"concatenation, part {position + 1} of {len(flat)}"
        placing.copy(name, text, view, plain(view.size), output, targets[part][view.order])


def pad(placing: Placing, instruction: Instruction) -> None:
    slot, settings = instruction.inputs[0], instruction.settings
    shape, view = placing.shape(slot), placing.views[slot]
    output = placing.output(instruction)
    around, value = cast(Any, (settings["padding"], settings["value"]))
    if view.dtype != output.dtype:
        view = placing.widened(f"{instruction.layer}_widened", view)
    placing.steps.append(
        Step(
            f"fill_{unit(output.dtype)}",
            f"{instruction.layer}_filled",
            f"all {value}",
            output,
            output,
            numbers={"count": output.size, "value": value},
        )
    )
    index = torch.arange(view.size, device="cpu").view(shape)
    padded = F.pad(index, around, value=-1).flatten().numpy()
    kept = np.flatnonzero(padded >= 0)
    places = view.places[padded[kept]]
    order = np.argsort(places)
    text = f"padding, {size(shape)} -> {size(placing.shape(instruction.output))}"
    placing.copy(instruction.layer, text, view, places[order], output, output.places[kept[order]])


def move(placing: Placing, instruction: Instruction) -> None:
    settings, view = instruction.settings, placing.views[instruction.inputs[0]]
    slot = placing.program.slots[instruction.output]
    sizes, strides = cast(Any, (settings["sizes"], settings["strides"]))
    index = np.full(sizes, settings["offset"], np.int64)
    for axis, (count, stride) in enumerate(zip(sizes, strides, strict=True)):
        index += (np.arange(count) * stride).reshape(-1, *[1] * (len(sizes) - axis - 1))
    # Where each value of the output lies now.
    places = view.places[index.reshape(-1)]
    order, first = np.argsort(places), int(places.min())
    if np.array_equal(places[order], plain(len(places)) + first):
        offset = view.offset + first
        placing.views[instruction.output] = View(view.buffer, offset, view.dtype, order)
        return
    output = placing.output(instruction)
    text = f"other places, {size(placing.shape(instruction.inputs[0]))} -> {size(slot.shape)}"
    placing.copy(instruction.layer, text, view, places[output.order], output)


def _periods(channels: Integers) -> tuple[int, Integers, int]:
    """How channels lie in memory: ``outer`` times a list of them, ``inner`` values of each."""
    changes = np.flatnonzero(channels[1:] != channels[:-1])
    inner = int(changes[0]) + 1 if len(changes) else len(channels)
    each = channels[::inner] if len(channels) % inner == 0 else channels
    again = np.flatnonzero(each[1:] == each[0])
    period = int(again[0]) + 1 if len(again) else len(each)
    chosen = each[:period]
    outer = len(channels) // (period * inner)
    if not np.array_equal(np.tile(np.repeat(chosen, inner), outer), channels):
        return 1, channels, 1
    return outer, chosen, inner
