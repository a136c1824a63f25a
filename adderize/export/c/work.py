"""What an inference computes, operation by operation; nothing is a multiplication."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from adderize.export.c.network import Network
from adderize.export.c.packing import lift_of
from adderize.export.c.text import arrays
from adderize.integer.program import Instruction, Program


class Work(NamedTuple):
    """Operations of one inference, index arithmetic aside.

    Attributes:
        additions: and subtractions.
        shifts: those of factors and of rounding.
        comparisons: of maxima and clamps, and one for the sign of each difference.
    """

    additions: int
    shifts: int
    comparisons: int


def work_of(program: Program) -> Work:
    counts = [_of_instruction(program, instruction) for instruction in program.instructions]
    return Work(*(sum(column) for column in zip(*counts, strict=True)))


def constant_bytes(network: Network) -> int:
    """Bytes of filters, factors and offsets."""
    constants = (arrays(step.all_fields(), "") for step in network.steps)
    return sum(values.nbytes for of_step in constants for values in of_step.values())


def bytes_moved(network: Network) -> int:
    """Bytes of one inference: each step's operands, results and constants, once."""
    views = (view for step in network.steps for view in (*step.reads, step.output))
    return constant_bytes(network) + sum(view.nbytes for view in views)


def _of_instruction(program: Program, instruction: Instruction) -> Work:
    kind, settings = instruction.kind, cast(Any, instruction.settings)
    count = program.slots[instruction.output].numel
    if kind in ("adder_conv", "adder_linear"):
        taps = count * instruction.tensors["weight"][0].numel()
        return _sum(Work(2 * taps, 0, taps), _epilogue(instruction, count))
    if kind in ("shift_conv", "shift_linear"):
        signs = instruction.tensors["signs"]
        windows = count // signs.shape[1]
        terms = int((signs != 0).sum()) * windows
        seen = signs[0, 0].numel() * settings.get("groups", 1) * windows
        return Work(terms, terms + (lift_of(instruction) > 0) * seen, 0)
    if kind == "rescale":
        return _sum(_rounding(settings, count), _epilogue(instruction, count))
    if kind == "sum_pool":
        taps = count * math.prod(settings["kernel"])
        return _sum(Work(taps, 0, 0), _rounding(settings, taps))
    if kind == "max_pool":
        return Work(0, 0, count * math.prod(settings["kernel"]))
    return Work(0, 0, 2 * count if kind == "clamp" else 0)


def _epilogue(instruction: Instruction, count: int) -> Work:
    tensors = instruction.tensors
    channels = len(tensors["bias"])
    terms = int((tensors["signs"] != 0).sum()) * (count // channels)
    if "other_signs" in tensors:
        terms += int((tensors["other_signs"] != 0).sum()) * count
    return Work(terms, terms + count, 2 * count)


def _rounding(settings: Any, count: int) -> Work:
    drops = sum(settings.get(name, 0) > 0 for name in ("drop", "other_drop"))
    return Work(drops * count, drops * count, 0)


def _sum(first: Work, second: Work) -> Work:
    return Work(*(a + b for a, b in zip(first, second, strict=True)))
