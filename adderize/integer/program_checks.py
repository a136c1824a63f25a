"""Whether a program is sound: its slots, settings and tensors are all there and fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from adderize.errors import AdderizeError, named
from adderize.integer.fixed_point import LIMIT
from adderize.integer.program import ADDERS, PRODUCTS, Instruction, Program, Slot
from adderize.integer.program_bounds import bounds_of
from adderize.integer.program_shapes import SHAPES

MODES = ("constant", "reflect", "replicate", "circular")
Test = Callable[[Any], bool]


def _between(low: int, high: int) -> Test:
    return lambda value: type(value) is int and low <= value <= high


def _many(test: Test, *counts: int) -> Test:
    return lambda value: (
        isinstance(value, tuple) and (not counts or len(value) in counts) and all(map(test, value))
    )


_SIZE, _COUNT, _ANY = _between(1, 2**30), _between(0, 2**30), _between(-LIMIT, LIMIT)
_BYTE, _SHIFT, _RIGHT = _between(0, 255), _between(0, 31), _between(-31, 0)
_EPILOGUE = {"fraction": _SHIFT, "low": _ANY, "high": _ANY}
_FILTERS = {
    "stride": _many(_SIZE, 2),
    "padding": _many(_COUNT, 4),
    "dilation": _many(_SIZE, 2),
    "groups": _SIZE,
    "padding_mode": lambda value: value in MODES,
}
_WINDOW = {"kernel": _many(_SIZE, 2), "stride": _many(_SIZE, 2), "padding": _many(_COUNT, 2)}
_SHIFTS = {"shifts": torch.int8, "signs": torch.int8, "bias": torch.int32}
_OTHER = {"other_shifts": torch.int8, "other_signs": torch.int8}


class _Kind(NamedTuple):
    """Inputs at most, and what settings and tensors there are; "other" ones with two inputs."""

    inputs: int
    settings: Mapping[str, Test]
    tensors: Mapping[str, torch.dtype] = {}


_ADDER = {"weight": torch.uint8, **_SHIFTS}
_KINDS = {
    "adder_conv": _Kind(2, {**_FILTERS, **_EPILOGUE, "zero": _BYTE, "levels": _BYTE}, _ADDER),
    "adder_linear": _Kind(2, {**_EPILOGUE, "levels": _BYTE}, _ADDER),
    "shift_conv": _Kind(
        1, {**_FILTERS, "least": _RIGHT, "fraction": _SHIFT}, {**_SHIFTS, "pad": torch.int32}
    ),
    "shift_linear": _Kind(1, {"least": _RIGHT, "fraction": _SHIFT}, _SHIFTS),
    "sum_pool": _Kind(1, {**_WINDOW, "pad": _ANY, "drop": _SHIFT}),
    "max_pool": _Kind(
        1, {**_WINDOW, "dilation": _many(_SIZE, 2), "ceil_mode": _between(0, 1)}
    ),
    "rescale": _Kind(2, {**_EPILOGUE, "drop": _SHIFT, "other_drop": _SHIFT}, _SHIFTS),
    "clamp": _Kind(1, {"low": _ANY, "high": _ANY}),
    "concat": _Kind(10**6, {"dim": _COUNT}),
    "pad": _Kind(1, {"padding": _many(_COUNT), "value": _ANY}),
    "move": _Kind(1, {"offset": _COUNT, "sizes": _many(_SIZE), "strides": _many(_COUNT)}),
}  # fmt: skip


def check_program(program: Program) -> None:
    """Every slot is written once and before it is read, every instruction is of its kind's form,
    and no sum leaves 32 bits, whatever the image.

    Raises:
        AdderizeError: names the first layer that is wrong, and what is wrong there.
    """
    for number, slot in enumerate(program.slots):
        if slot.dtype not in ("uint8", "int32") or not _many(_SIZE)(slot.shape):
            raise AdderizeError(f"slot {number} is {slot}; expected sizes, and uint8 or int32")
    _check_number(program, program.input, "the input")
    _check_number(program, program.output, "the output")
    if len(program.input_size) != 3 or program.slots[program.input].dtype != "uint8":
        raise AdderizeError(
            f"the input is {program.slots[program.input]}; expected uint8 (C, H, W)"
        )
    if not len(program.mean) == len(program.std) == program.input_size[0]:
        raise AdderizeError(f"mean and std are {program.mean} and {program.std}; expected channels")
    written, names = {program.input}, set[str]()
    for step in program.instructions:
        with named(f"{step.kind} {step.layer}"):
            _check_step(program, step, written)
        written.add(step.output)
        names.add(step.layer)
    if len(names) < len(program.instructions):
        raise AdderizeError("two instructions have one name")
    if unwritten := set(range(len(program.slots))) - written:
        raise AdderizeError(f"no instruction writes the slots {sorted(unwritten)}")
    bounds_of(program)


def _check_number(program: Program, slot: object, what: str) -> None:
    if not _between(0, len(program.slots) - 1)(slot):
        raise AdderizeError(f"{what} is slot {slot!r} of {len(program.slots)}")


def _check_step(program: Program, step: Instruction, written: set[int]) -> None:
    kind = _KINDS.get(step.kind)
    if kind is None:
        raise AdderizeError(f"an unknown kind; expected one of {', '.join(_KINDS)}")
    for slot in (*step.inputs, step.output):
        _check_number(program, slot, "an operand")
    if unwritten := [slot for slot in step.inputs if slot not in written]:
        raise AdderizeError(f"it reads slot {unwritten[0]} before that is written")
    if step.output in written:
        raise AdderizeError(f"it writes slot {step.output} again")
    if not 1 <= len(step.inputs) <= kind.inputs:
        raise AdderizeError(f"it has {len(step.inputs)} inputs; expected 1 to {kind.inputs}")
    _check_settings(step.settings, kind.settings)
    with_other = len(step.inputs) == 2 and "bias" in kind.tensors
    dtypes = {**kind.tensors, **(_OTHER if with_other else {})}
    _check_tensors(step.tensors, dtypes, cast(int, step.settings.get("least", 0)))
    inputs, output = [program.slots[slot] for slot in step.inputs], program.slots[step.output]
    shape = SHAPES[step.kind](step, [*inputs, output])
    if shape != output.shape:
        raise AdderizeError(f"its output is {output.shape}; its settings and inputs give {shape}")
    _check_dtypes(step, inputs, output)


def _check_settings(settings: Mapping[str, Any], tests: Mapping[str, Test]) -> None:
    if settings.keys() != tests.keys():
        different = ", ".join(sorted(settings.keys() ^ tests.keys()))
        raise AdderizeError(f"settings are missing or unknown: {different}")
    for name, test in tests.items():
        if not test(settings[name]):
            raise AdderizeError(f"{name} is {settings[name]!r}, which it cannot be")
    if settings.get("low", 0) > settings.get("high", 0) and "low" in settings:
        raise AdderizeError(f"low is {settings['low']}, above high, {settings['high']}")


def _check_tensors(
    tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], least: int
) -> None:
    if tensors.keys() != dtypes.keys():
        different = ", ".join(sorted(tensors.keys() ^ dtypes.keys()))
        raise AdderizeError(f"tensors are missing or unknown: {different}")
    for name, dtype in dtypes.items():
        if tensors[name].dtype != dtype:
            raise AdderizeError(f"{name} is {tensors[name].dtype}; expected {dtype}")
    for prefix in ("", "other_"):
        shifts, signs = tensors.get(f"{prefix}shifts"), tensors.get(f"{prefix}signs")
        if shifts is None or signs is None:
            continue
        if shifts.shape != signs.shape or not len(shifts):
            raise AdderizeError(f"{prefix}shifts is {tuple(shifts.shape)}, and signs are otherwise")
        if int(shifts.min()) < least or int(shifts.max()) > 31 or int(signs.long().abs().max()) > 1:
            raise AdderizeError(f"{prefix}shifts lie outside {least}..31, or signs outside -1..1")


def _check_dtypes(step: Instruction, inputs: Sequence[Slot], output: Slot) -> None:
    dtypes = [slot.dtype for slot in inputs]
    same = step.kind in ("max_pool", "concat", "move")
    if same and set(dtypes) != {output.dtype}:
        raise AdderizeError(f"it makes {output.dtype} of {', '.join(dtypes)}")
    if step.kind in ADDERS and dtypes[0] != "uint8":
        raise AdderizeError("its input is int32; expected uint8")
    if step.kind in (*PRODUCTS, "sum_pool") and output.dtype != "int32":
        raise AdderizeError("its output is uint8; expected int32")
    names = ("value",) if step.kind == "pad" else ("low", "high")
    limits: list[Any] = [step.settings[name] for name in names if name in step.settings]
    if output.dtype == "uint8" and not all(map(_BYTE, limits)):
        raise AdderizeError(f"its values of up to {max(limits)} do not fit the bytes of its output")
    if step.kind == "pad" and (dtypes[0], output.dtype) == ("int32", "uint8"):
        raise AdderizeError("it makes bytes of int32")
