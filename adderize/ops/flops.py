"""FLOP formulas of the ops for ``torch.utils.flop_counter``.

They are registered with the ops themselves: ``FlopCounterMode`` takes a copy of the formulas when
it is made and counts an op without one as zero, with no warning.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import flop_counter as counter

from adderize import formulas
from adderize.formulas import Shape


def _forward(input: Shape, weight: Shape, *arguments: Any, out_shape: Shape) -> int:
    return formulas.adder(input, weight, out_shape).flops


def _forward_packed(
    input: Shape, packed: Shape, weight: Shape, *arguments: Any, out_shape: Shape
) -> int:
    return formulas.adder(input, weight, out_shape).flops


def _input_gradient(grad: Shape, input: Shape, weight: Shape, *arguments: Any, **out: Any) -> int:
    return formulas.adder_input_gradient(input, weight, grad, arguments[-1]).flops


def _weight_gradient(grad: Shape, input: Shape, weight: Shape, *arguments: Any, **out: Any) -> int:
    return formulas.adder_weight_gradient(input, weight, grad, arguments[-1]).flops


def _binary(input: Shape, weight: Shape, *arguments: Any, out_shape: Shape) -> int:
    return formulas.xnor(input, weight, out_shape).flops


def _binary_gradient(grad: Shape, input: Shape, weight: Shape, *rest: Any, **out: Any) -> int:
    return formulas.convolution(input, weight, grad).flops


def register() -> None:
    """Make ``FlopCounterMode`` count the ops."""
    ops = torch.ops.adderize
    counter.register_flop_formula(ops.adder_conv2d)(_forward)
    counter.register_flop_formula(ops.adder_conv2d_u8)(_forward)
    counter.register_flop_formula(ops.adder_conv2d_u8_packed)(_forward_packed)
    counter.register_flop_formula(ops.adder_conv2d_u8_shifted)(_forward_packed)
    counter.register_flop_formula(ops.adder_conv2d_input_gradient)(_input_gradient)
    counter.register_flop_formula(ops.adder_conv2d_weight_gradient)(_weight_gradient)
    counter.register_flop_formula(ops.binary_conv2d)(_binary)
    counter.register_flop_formula(ops.binary_conv2d_input_gradient)(_binary_gradient)
    counter.register_flop_formula(ops.binary_conv2d_weight_gradient)(_binary_gradient)
