"""What an inference computes, operation by operation; nothing is a multiplication."""

from __future__ import annotations

import math
from typing import Any, cast

from adderize.export.c.network import Network
from adderize.export.c.packing import lift_of
from adderize.export.c.text import arrays
from adderize.formulas import (
    ADDER_PAIR,
    ADDITION,
    COMPARISON,
    FREE,
    ROUNDED_SHIFT,
    SHIFT,
    Operations,
)
from adderize.integer.program import ADDERS, PRODUCTS, Instruction, Program


def work_of(program: Program) -> Operations:
    """Operations of one inference, index arithmetic aside: all terms that factors have, and a
    comparison for the sign of each difference."""
    counts = (_of_instruction(program, instruction) for instruction in program.instructions)
    return sum(counts, FREE)


def constant_bytes(network: Network) -> int:
    """Bytes of filters, factors and offsets."""
    constants = (arrays(step.all_fields(), "") for step in network.steps)
    return sum(values.nbytes for of_step in constants for values in of_step.values())


def bytes_moved(network: Network) -> int:
    """Bytes of one inference: each step's operands, results and constants, once."""
    views = (view for step in network.steps for view in (*step.reads, step.output))
    return constant_bytes(network) + sum(view.nbytes for view in views)


def _of_instruction(program: Program, instruction: Instruction) -> Operations:
    kind, settings = instruction.kind, cast(Any, instruction.settings)
    count = program.slots[instruction.output].numel
    if kind in ADDERS:
        taps: int = count * instruction.tensors["weight"][0].numel()
        return taps * (ADDER_PAIR + COMPARISON) + _epilogue(instruction, count)
    if kind in PRODUCTS:
        signs = instruction.tensors["signs"]
        windows = count // signs.shape[1]
        terms = int((signs != 0).sum()) * windows
        seen: int = signs[0, 0].numel() * settings.get("groups", 1) * windows
        return terms * (ADDITION + SHIFT) + (lift_of(instruction) > 0) * seen * SHIFT
    if kind == "rescale":
        return _rounding(settings, count) + _epilogue(instruction, count)
    if kind == "sum_pool":
        taps = math.prod((count, *settings["kernel"]))
        return taps * ADDITION + _rounding(settings, taps)
    if kind == "max_pool":
        return math.prod((count, *settings["kernel"])) * COMPARISON
    return 2 * count * COMPARISON if kind == "clamp" else FREE


def _epilogue(instruction: Instruction, count: int) -> Operations:
    tensors = instruction.tensors
    channels = len(tensors["bias"])
    terms = int((tensors["signs"] != 0).sum()) * (count // channels)
    if "other_signs" in tensors:
        terms += int((tensors["other_signs"] != 0).sum()) * count
    return terms * (ADDITION + SHIFT) + count * (SHIFT + 2 * COMPARISON)


def _rounding(settings: Any, count: int) -> Operations:
    drops: int = sum(settings.get(name, 0) > 0 for name in ("drop", "other_drop"))
    return drops * count * ROUNDED_SHIFT
