"""Adder layers, and kept layers of constant factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from adderize.export.c.buffers import View, channels_last, plain
from adderize.export.c.packing import grid_of, lift_of, pack_filters, pack_terms
from adderize.export.c.placing import Placing, size
from adderize.export.c.steps import Epilogue, Fields, Step
from adderize.export.c.windows import window_fields, within_16_bits
from adderize.integer.program import Instruction
from adderize.integer.strides import Integers


def adder_conv(placing: Placing, instruction: Instruction) -> None:
    slot = instruction.inputs[0]
    weight = instruction.tensors["weight"].numpy()
    image, shape, around = _padded(placing, instruction)
    output = placing.output(instruction)
    windows = window_fields(placing, instruction, shape, weight.shape[2:], around)
    taps = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    in_place = weight.shape[2:] == (1, 1) and not any(around)
    _adder(
        placing,
        instruction,
        image,
        output,
        taps,
        _groups(instruction, weight),
        windows=windows,
        patch=0 if in_place else math.prod(weight.shape[2:]) * shape[0],
        text=f"adder convolution, {size(placing.shape(slot))} -> "
        f"{size(placing.shape(instruction.output))}, {_kernel(weight)}",
    )


def adder_linear(placing: Placing, instruction: Instruction) -> None:
    weight = instruction.tensors["weight"].numpy()
    view, rows, order = _rows(placing, instruction, weight.shape[1])
    output = placing.output(instruction, plain(rows * len(weight)))
    _adder(
        placing,
        instruction,
        view,
        output,
        weight[:, order],
        _groups(instruction, weight),
        numbers={"rows": rows},
        text=f"adder layer, {weight.shape[1]} -> {len(weight)}",
    )


def _adder(
    placing: Placing,
    instruction: Instruction,
    view: View,
    output: View,
    taps: Any,
    groups: Fields,
    **others: Any,
) -> None:
    function, grid = instruction.kind, grid_of(taps)
    packs = grid is not None and groups["filters"] >= 4
    fields: dict[str, Any] = {
        "groups": groups,
        "filters": pack_filters(taps, groups["groups"], grid if packs else None),
        "zero": instruction.settings.get("zero", 0),
    }
    if grid is not None and packs:
        function += "_4bit"
        fields |= {"offset": grid.offset, "shift": grid.shift}
    placing.steps.append(
        Step(
            function,
            instruction.layer,
            input=view,
            output=output,
            structure="adder",
            other=placing.other(instruction, output),
            fields=fields,
            channels=len(taps),
            epilogue=Epilogue.of(instruction.settings, instruction.tensors),
            **others,
        )
    )


def _rows(placing: Placing, instruction: Instruction, features: int) -> tuple[View, int, Integers]:
    """What a linear layer reads, its rows, and where each one's features lie."""
    slot = instruction.inputs[0]
    view = placing.views[slot]
    rows = view.size // features
    if rows == 1:
        return view, 1, view.order
    view = placing.ordered(slot, plain(view.size), instruction.layer)
    return view, rows, plain(features)


def shift_conv(placing: Placing, instruction: Instruction) -> None:
    slot = instruction.inputs[0]
    weight = instruction.tensors["shifts"][0].numpy()
    image, shape, around = _padded(placing, instruction)
    output = placing.output(instruction)
    _product(
        placing,
        instruction,
        image,
        output,
        lambda terms: np.moveaxis(terms, 2, -1),
        _groups(instruction, weight),
        padded=any(around),
        windows=window_fields(placing, instruction, shape, weight.shape[2:], around),
        patch=math.prod(weight.shape[2:]) * shape[0],
        text=f"convolution of shifts, {size(placing.shape(slot))} -> "
        f"{size(placing.shape(instruction.output))}, {_kernel(weight)}",
    )


def shift_linear(placing: Placing, instruction: Instruction) -> None:
    weight = instruction.tensors["shifts"][0].numpy()
    view, rows, order = _rows(placing, instruction, weight.shape[1])
    output = placing.output(instruction, plain(rows * len(weight)))
    _product(
        placing,
        instruction,
        view,
        output,
        lambda terms: terms[..., order],
        _groups(instruction, weight),
        padded=False,
        numbers={"rows": rows},
        patch=weight.shape[1],
        text=f"linear layer of shifts, {weight.shape[1]} -> {len(weight)}",
    )


def _product(
    placing: Placing,
    instruction: Instruction,
    view: View,
    output: View,
    arranged: Callable[[Any], Any],
    groups: Fields,
    *,
    padded: bool,
    **others: Any,
) -> None:
    tensors = instruction.tensors
    shifts, signs = (arranged(tensors[name].numpy()) for name in ("shifts", "signs"))
    count, lift = len(shifts), lift_of(instruction)
    right = (lift - shifts).clip(max=31)
    fields: dict[str, Any] = {
        "groups": groups,
        "terms": pack_terms(right.reshape(count, -1), signs.reshape(count, -1)),
        "bias": tensors["bias"].numpy(),
        "pad": tensors["pad"].numpy() if padded else None,
        "input_bytes": int(view.dtype == "uint8"),
        "lift": lift,
    }
    placing.steps.append(
        Step(
            instruction.kind,
            instruction.layer,
            input=view,
            output=output,
            structure="product",
            channels=len(tensors["shifts"][0]),
            fields=fields,
            patch_dtype="int32",
            **others,
        )
    )


def _padded(
    placing: Placing, instruction: Instruction
) -> tuple[View, tuple[int, ...], tuple[int, int, int, int]]:
    """The image that a filter sees, its shape, and what the function itself pads it with:
    left, right, top, bottom."""
    slot, settings = instruction.inputs[0], instruction.settings
    shape = placing.shape(slot)
    around = cast(tuple[int, int, int, int], settings["padding"])
    image = placing.ordered(slot, channels_last(shape), instruction.layer)
    mode = cast(str, settings["padding_mode"])
    if mode == "constant" or not any(around):
        return image, shape, around
    index = torch.arange(image.size, dtype=torch.float64, device="cpu").view(1, *shape)
    padded = F.pad(index, around, mode=mode)[0].long().numpy()
    view = placing.new(padded.shape, image.dtype)
    sources = image.places[padded.reshape(-1)[view.order]]
    placing.copy(f"{instruction.layer}_padded", f"{mode} padding", image, sources, view)
    return view, padded.shape, (0, 0, 0, 0)


def _groups(instruction: Instruction, weight: Any) -> Fields:
    """What each group of filters sees of a window, or of a row."""
    groups = cast(int, instruction.settings.get("groups", 1))
    channels, taps = weight.shape[1], math.prod(weight.shape[2:])
    together = groups == 1
    counts = {
        "groups": groups,
        "filters": len(weight) // groups,
        "runs": 1 if together else taps,
    }
    return within_16_bits(counts) | {
        "run": channels * taps if together else channels,
        "skip": 0 if together else channels * (groups - 1),
    }


def _kernel(weight: Any) -> str:
    return f"{weight.shape[2]} x {weight.shape[3]} taps"
