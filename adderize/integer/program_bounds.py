"""The proof that no sum of a program leaves 32 bits, whatever the image, from the program alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError, named
from adderize.integer.fixed_point import LIMIT, ProductSums, factors_of
from adderize.integer.program import Instruction, Program


class Interval(NamedTuple):
    """The values that a slot may hold."""

    low: int
    high: int

    @property
    def largest(self) -> int:
        return max(abs(self.low), abs(self.high))

    def with_value(self, value: int) -> Interval:
        return Interval(min(self.low, value), max(self.high, value))


def bounds_of(program: Program) -> list[Interval]:
    """For each slot of a sound program the values that it may hold.

    Every sum is bounded by the sum of its terms' magnitudes: the order of the terms is of no
    account.

    Raises:
        AdderizeError: names a layer whose sums might leave 32 bits.
    """
    bounds = [Interval(0, 0)] * len(program.slots)
    bounds[program.input] = Interval(0, 255)
    for step in program.instructions:
        inputs = [bounds[slot] for slot in step.inputs]
        with named(f"{step.kind} {step.layer}"):
            bounds[step.output] = _RULES[step.kind](step, inputs)
    return bounds


def _held(total: float) -> int:
    if total > LIMIT:
        raise AdderizeError(f"its sums reach {total:.3g}, which 32 bits do not hold")
    return math.ceil(total)


def _rounded(values: Interval, drop: Any) -> Interval:
    half = 1 << drop >> 1
    _held(values.largest + half)
    return Interval(values.low + half >> drop, values.high + half >> drop)


def _sizes(step: Instruction, prefix: str = "") -> Tensor:
    """The sum of all terms' magnitudes for an operand of 1, float64: exact below 2^53."""
    signs = step.tensors[f"{prefix}signs"]
    return factors_of(step.tensors[f"{prefix}shifts"], signs.abs()).double()


def _epilogue(step: Instruction, sums: Tensor, other: Interval | None) -> Interval:
    """Of sums whose largest magnitudes are float64 (C,) or one for all."""
    settings: Any = step.settings
    _held(float(sums.max()))
    total = sums * _sizes(step) + step.tensors["bias"].double().abs()
    if other is not None:
        total = total + other.largest * _sizes(step, "other_")
    _held(float(total.max()))
    return Interval(settings["low"], settings["high"])


def _adder(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    values, weight = inputs[0], step.tensors["weight"].flatten(1).double()
    if step.settings.get("padding_mode") == "constant":
        zero: Any = step.settings["zero"]
        values = values.with_value(zero)
    farthest = torch.maximum((weight - values.low).abs(), (values.high - weight).abs()).sum(1)
    return _epilogue(step, farthest, inputs[1] if len(inputs) > 1 else None)


def _rescale(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    values = _rounded(inputs[0], step.settings["drop"])
    other = _rounded(inputs[1], step.settings["other_drop"]) if len(inputs) > 1 else None
    largest = torch.tensor(float(values.largest), dtype=torch.float64, device="cpu")
    return _epilogue(step, largest, other)


def _product(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    values, tensors, settings = inputs[0], step.tensors, step.settings
    if settings.get("padding_mode") == "constant" and settings["padding"] != (0, 0, 0, 0):
        for pad in (int(end) for end in tensors["pad"].aminmax()):
            values = values.with_value(pad)
    sums = ProductSums.of(tensors["shifts"], tensors["signs"], tensors["bias"], *values)
    _held(float(sums.partial.max()))
    return Interval(math.floor(float(sums.low.min())), math.ceil(float(sums.high.max())))


def _sum_pool(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    settings: Any = step.settings
    values = _rounded(inputs[0], settings["drop"])
    if any(settings["padding"]):
        values = values.with_value(settings["pad"])
    count = math.prod(settings["kernel"])
    _held(values.largest * count)
    return Interval(values.low * count, values.high * count)


def _clamp(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    settings: Any = step.settings
    low, high = settings["low"], settings["high"]
    return Interval(*(min(max(end, low), high) for end in inputs[0]))


def _union(step: Instruction, inputs: Sequence[Interval]) -> Interval:
    value: Any = step.settings.get("value", inputs[0].low)
    highest = max(values.high for values in inputs)
    return Interval(min(values.low for values in inputs), highest).with_value(value)


_RULES: dict[str, Callable[[Instruction, Sequence[Interval]], Interval]] = {
    "adder_conv": _adder,
    "adder_linear": _adder,
    "shift_conv": _product,
    "shift_linear": _product,
    "sum_pool": _sum_pool,
    "max_pool": _union,
    "rescale": _rescale,
    "clamp": _clamp,
    "concat": _union,
    "pad": _union,
    "move": _union,
}
