"""The shape that an instruction's output has, from its inputs, settings and tensors.

The slots are those of the inputs, then the output: where values move, its shape is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adderize.errors import AdderizeError
from adderize.integer.program import Instruction, Slot
from adderize.ops.byte_operands import Window
from adderize.ops.geometry import Geometry

Shape = tuple[int, ...]


def _filters(step: Instruction, x: Slot, weight: Shape) -> Shape:
    settings: Any = step.settings
    _expect("its input", x.shape, (None, None, None))
    _expect("its filters", weight, (None, None, None, None))
    channels, height, width = x.shape
    left, right, top, bottom = settings["padding"]
    most = int(settings["padding_mode"] == "reflect")
    fits = max(left, right) <= width - most and max(top, bottom) <= height - most
    if settings["padding_mode"] != "constant" and not fits:
        raise AdderizeError(f"its padding {settings['padding']} is larger than the image")
    geometry = Geometry(settings["stride"], (0, 0), settings["dilation"], settings["groups"])
    image = (1, channels, height + top + bottom, width + left + right)
    return geometry.output_shape(image, weight)[1:]


def _adder_conv(step: Instruction, slots: Sequence[Slot]) -> Shape:
    shape = _filters(step, slots[0], tuple(step.tensors["weight"].shape))
    _check_epilogue(step, slots, shape, shape[0])
    return shape


def _adder_linear(step: Instruction, slots: Sequence[Slot]) -> Shape:
    weight = tuple(step.tensors["weight"].shape)
    _expect("weight", weight, (None, slots[0].shape[-1]))
    shape = (*slots[0].shape[:-1], weight[0])
    _check_epilogue(step, slots, shape, weight[0])
    return shape


def _check_epilogue(
    step: Instruction, slots: Sequence[Slot], shape: Shape, channels: int | None
) -> None:
    _expect("shifts", tuple(step.tensors["shifts"].shape), (None, channels))
    _expect("bias", tuple(step.tensors["bias"].shape), (channels,))
    if len(step.inputs) == 2:
        _expect("other_shifts", tuple(step.tensors["other_shifts"].shape), (None,))
        _expect("its second input", slots[1].shape, shape)


def _shift_conv(step: Instruction, slots: Sequence[Slot]) -> Shape:
    shape = _filters(step, slots[0], tuple(step.tensors["shifts"].shape[1:]))
    _expect("bias", tuple(step.tensors["bias"].shape), shape[:1])
    _expect("pad", tuple(step.tensors["pad"].shape), slots[0].shape[:1])
    return shape


def _shift_linear(step: Instruction, slots: Sequence[Slot]) -> Shape:
    shifts = tuple(step.tensors["shifts"].shape)
    _expect("shifts", shifts, (None, None, slots[0].shape[-1]))
    _expect("bias", tuple(step.tensors["bias"].shape), shifts[1:2])
    return (*slots[0].shape[:-1], shifts[1])


def _pool(step: Instruction, slots: Sequence[Slot]) -> Shape:
    settings: Any = step.settings
    _expect("its input", slots[0].shape, (None, None, None))
    channels, height, width = slots[0].shape
    halves = (size // 2 for size in settings["kernel"])
    if any(pad > half for pad, half in zip(settings["padding"], halves, strict=True)):
        raise AdderizeError(f"its padding {settings['padding']} is more than half its window")
    geometry = Geometry(
        settings["stride"], settings["padding"], settings.get("dilation", (1, 1)), channels
    )
    window = Window(settings["kernel"], geometry, bool(settings.get("ceil_mode", 0)))
    size = tuple(window.output_size((height, width)))
    if min(size) < 1:
        raise AdderizeError(f"its window is larger than its image of {height}x{width}")
    return (channels, *size)


def _rescale(step: Instruction, slots: Sequence[Slot]) -> Shape:
    columns = len(step.tensors["bias"])
    if columns not in (1, slots[0].shape[0]):
        raise AdderizeError(f"bias has {columns} values for {slots[0].shape[0]} channels")
    _check_epilogue(step, slots, slots[0].shape, columns)
    return slots[0].shape


def _same(step: Instruction, slots: Sequence[Slot]) -> Shape:
    return slots[0].shape


def _concat(step: Instruction, slots: Sequence[Slot]) -> Shape:
    dim: Any = step.settings["dim"]
    if dim >= len(slots[0].shape):
        raise AdderizeError(f"it joins dimension {dim} of {slots[0].shape}")
    others = [(*slot.shape[:dim], None, *slot.shape[dim + 1 :]) for slot in slots[:-1]]
    for slot in slots[:-1]:
        _expect("an input", slot.shape, others[0])
    total = sum(slot.shape[dim] for slot in slots[:-1])
    return (*slots[0].shape[:dim], total, *slots[0].shape[dim + 1 :])


def _pad(step: Instruction, slots: Sequence[Slot]) -> Shape:
    padding: Any = step.settings["padding"]
    if len(padding) != 2 * len(slots[0].shape):
        raise AdderizeError(f"padding is {padding}; expected a pair for each of {slots[0].shape}")
    pairs = zip(reversed(padding[::2]), reversed(padding[1::2]), strict=True)
    added = (before + after for before, after in pairs)
    return tuple(size + more for size, more in zip(slots[0].shape, added, strict=True))


def _move(step: Instruction, slots: Sequence[Slot]) -> Shape:
    settings: Any = step.settings
    source, output = slots
    sizes, strides = settings["sizes"], settings["strides"]
    if len(sizes) != len(strides) or not sizes or math.prod(sizes) != output.numel:
        raise AdderizeError(f"sizes {sizes} and strides {strides} do not give {output.shape}")
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if settings["offset"] + last >= source.numel:
        raise AdderizeError(f"it reads beyond the {source.numel} values of its input")
    return output.shape


SHAPES: dict[str, Callable[[Instruction, Sequence[Slot]], Shape]] = {
    "adder_conv": _adder_conv,
    "adder_linear": _adder_linear,
    "shift_conv": _shift_conv,
    "shift_linear": _shift_linear,
    "sum_pool": _pool,
    "max_pool": _pool,
    "rescale": _rescale,
    "clamp": _same,
    "concat": _concat,
    "pad": _pad,
    "move": _move,
}


def _expect(what: str, found: Shape, expected: Sequence[int | None]) -> None:
    fits = len(found) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(found, expected, strict=True)
    )
    if not fits:
        text = ", ".join("any" if size is None else str(size) for size in expected)
        raise AdderizeError(f"{what} has shape {found}; expected ({text})")
