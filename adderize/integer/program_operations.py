"""What a program's instructions compute, operation by operation."""

from __future__ import annotations

from math import prod
from typing import Any

from adderize import formulas
from adderize.formulas import FREE, Operations
from adderize.integer.program import ADDERS, PRODUCTS, Instruction, Program


def operations_of(program: Program, step: Instruction, *, as_products: bool = False) -> Operations:
    """Operations of an instruction for one image, by :mod:`adderize.formulas`.

    Args:
        as_products: of the convolutional network that it stands for: filters and scales multiply,
            and nothing is shifted.
    """
    slots = [program.slots[slot] for slot in (*step.inputs, step.output)]
    output = slots[-1]
    counted = _filters(step, output.shape, as_products)
    if "low" in step.settings:
        counted += output.numel * 2 * formulas.COMPARISON
    if step.kind in (*ADDERS, "rescale"):
        counted += _epilogue(step, output.numel, as_products)
    settings: Any = step.settings
    if step.kind == "sum_pool":
        counted += output.numel * prod(settings["kernel"]) * formulas.ADDITION
    if step.kind == "max_pool":
        counted += formulas.maximum(output.numel * prod(settings["kernel"]), output.numel)
    if not as_products:
        for name, slot in zip(("drop", "other_drop"), slots[:-1], strict=False):
            counted += bool(settings.get(name)) * slot.numel * formulas.ROUNDED_SHIFT
    return counted


def _filters(step: Instruction, output: formulas.Shape, as_products: bool) -> Operations:
    if step.kind in ADDERS:
        pair = formulas.CONVOLUTION_PAIR if as_products else formulas.ADDER_PAIR
        return prod(output) * prod(step.tensors["weight"].shape[1:]) * pair
    if step.kind not in PRODUCTS:
        return FREE
    terms, _, *taps = step.tensors["shifts"].shape
    products = prod(output) * (prod(taps) * formulas.CONVOLUTION_PAIR + formulas.ADDITION)
    return products if as_products else formulas.shift_add(products, terms)


def _epilogue(step: Instruction, outputs: int, as_products: bool) -> Operations:
    """Per output: scale and bias, the second operand's scale and sum, the shift by the fraction."""
    one = formulas.CONVOLUTION_PAIR
    if as_products:
        return outputs * (1 + (len(step.inputs) == 2)) * one
    counted = formulas.shift_add(one, len(step.tensors["shifts"]))
    if len(step.inputs) == 2:
        counted += formulas.shift_add(one, len(step.tensors["other_shifts"]))
    return outputs * (counted + bool(step.settings["fraction"]) * formulas.SHIFT)
