"""The same formulas as operator handles of fvcore, which traces real kernels through TorchScript.

It sees other operators than the dispatcher does (``linear``, not ``addmm``; attention as a whole),
so that two independent counts of a network can be compared.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from adderize.arguments import check_module
from adderize.counting.operators import FORMULAS, FREE_OPERATORS, count_call
from adderize.formulas import Operations


def analysis(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Any:
    """fvcore's analysis with this package's formulas: ``.by_operator()`` names kinds of operations.

    Args:
        model: in evaluation mode, with real weights.
        inputs: what the model is called with.

    Returns:
        ``fvcore.nn.jit_analysis.JitModelAnalysis``. Operators without a formula are in its
        ``unsupported_ops()``, after a count has been asked for.
    """
    check_module(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn.jit_analysis import JitModelAnalysis

    counter = JitModelAnalysis(model, inputs)
    counter.clear_op_handles().unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    for name in FREE_OPERATORS:
        counter.set_op_handle(_full_name(name), None, f"{_full_name(name)}_", None)
    for name in FORMULAS:
        for operator in (_full_name(name), f"{_full_name(name)}_"):
            counter.set_op_handle(operator, _handle(operator))
    return counter


def total(counter: Any, module: str = "") -> Operations:
    """The operations of an analysis, or of one of its modules."""
    return Operations(**counter.by_operator(module))


def _full_name(name: str) -> str:
    return name if "::" in name else f"aten::{name}"


def _handle(operator: str) -> Any:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        floating = any(_is_floating(value) for value in (*inputs, *outputs))
        arguments = [_value(value) for value in inputs]
        operations = count_call(operator, arguments, _value(outputs[0]) or (), floating)
        if operations is None:
            raise NotImplementedError(f"{operator} with arguments {arguments} has no formula")
        return Counter({kind: count for kind, count in operations.by_kind().items() if count})

    return handle


def _value(value: Any) -> Any:
    """A traced value as the formulas take it: tensors as shapes, constants as they are."""
    if value.node().kind() == "prim::ListConstruct":
        return [_value(item) for item in value.node().inputs()]
    if isinstance(value.type(), torch.TensorType):
        sizes = value.type().sizes()
        return None if sizes is None else tuple(sizes)
    return value.toIValue()


def _is_floating(value: Any) -> bool:
    if value.node().kind() == "prim::ListConstruct":
        return any(_is_floating(item) for item in value.node().inputs())
    kind = value.type()
    return isinstance(kind, torch.TensorType) and kind.scalarType() in ("Float", "Double", "Half")
