"""FLOP formulas of the ops for ``torch.utils.flop_counter``, which counts unknown ops as zero.

Importing that module imports Triton, so the formulas are registered when somebody else does.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from adderize.counting import formulas
from adderize.counting.formulas import Shape

_COUNTER = "torch.utils.flop_counter"


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


def _register(counter: ModuleType) -> None:
    ops = torch.ops.adderize
    counter.register_flop_formula(ops.adder_conv2d)(_forward)
    counter.register_flop_formula(ops.adder_conv2d_u8)(_forward)
    counter.register_flop_formula(ops.adder_conv2d_u8_packed)(_forward_packed)
    counter.register_flop_formula(ops.adder_conv2d_input_gradient)(_input_gradient)
    counter.register_flop_formula(ops.adder_conv2d_weight_gradient)(_weight_gradient)
    counter.register_flop_formula(ops.binary_conv2d)(_binary)
    counter.register_flop_formula(ops.binary_conv2d_input_gradient)(_binary_gradient)
    counter.register_flop_formula(ops.binary_conv2d_weight_gradient)(_binary_gradient)


class _AfterImport(MetaPathFinder):
    """Finds the counter as the import system would, and registers once it has been executed."""

    def __init__(self) -> None:
        self._asking_the_others = False

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != _COUNTER or self._asking_the_others:
            return None
        self._asking_the_others = True
        try:
            spec = find_spec(name)
        finally:
            self._asking_the_others = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)
            sys.meta_path.remove(self)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make ``FlopCounterMode`` count the ops, whether it has been imported yet or not."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())
