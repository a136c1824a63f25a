"""Sums and products with numbers, and what is made of them: leaky ReLUs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx import Node

from adderize.dataflow.graphs import argument, module_of, operation
from adderize.quantize.calls import PRODUCTS, QUOTIENTS, is_plain

# The factors of the first and the second operand, where the second one's has `alpha`.
_SUMS: dict[str, Callable[[float], tuple[float, float]]] = {
    "add": lambda alpha: (1.0, alpha),
    "sub": lambda alpha: (1.0, -alpha),
    "subtract": lambda alpha: (1.0, -alpha),
    "rsub": lambda alpha: (-alpha, 1.0),
}


class Affine(NamedTuple):
    """``gain * x + offset``, with a gain other than 0."""

    gain: float
    offset: float


def affine_of(node: Node) -> Affine | None:
    """What a node computes of its one operand and a number; None for all else."""
    name = operation(node)
    if name in ("neg", "negative"):
        return Affine(-1.0, 0.0)
    if len(node.args) != 2 or node.kwargs.keys() - {"alpha"}:
        return None
    numbers = [_number(operand) for operand in (*node.args, node.kwargs.get("alpha", 1))]
    known = [number for number in numbers if number is not None]
    if len(node.all_input_nodes) != 1 or len(known) != 2:
        return None
    (first, second, alpha), number = numbers, known[0]
    if name in _SUMS and alpha is not None:
        factors = _SUMS[name](alpha)
        own, other = factors if first is None else factors[::-1]
        return Affine(own, other * number) if own else None
    if name in PRODUCTS and number:
        return Affine(number, 0.0)
    if name in QUOTIENTS and second:
        return Affine(1 / second, 0.0)
    return None


def _number(operand: object) -> float | None:
    if isinstance(operand, (int, float)) and math.isfinite(operand):
        return float(operand)
    return None


def split_leaky(graph: fx.Graph) -> None:
    """Leaky ReLUs become ``slope * min(x, 0) + max(x, 0)``, in place."""
    for node in list(graph.nodes):
        slope = _slope(node)
        if slope is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_split(graph, node, slope))
            graph.erase_node(node)


def _split(graph: fx.Graph, node: Node, slope: float) -> Node:
    name = str(node.target).replace(".", "_") if node.op == "call_module" else node.name

    def put(function: Callable[..., object], part: str, *args: Any) -> Node:
        return graph.create_node("call_function", function, args, {}, f"{name}_{part}")

    above = put(torch.clamp_min, "above", node.args[0], 0.0)
    if not slope:
        return above
    below = put(torch.clamp_max, "below", node.args[0], 0.0)
    return put(torch.add, "sum", put(torch.mul, "slope", below, slope), above)


def _slope(node: Node) -> float | None:
    """Of a leaky ReLU, None for all else; a PReLU is one where its channels have one slope."""
    module = module_of(node)
    if module is None:
        is_leaky = operation(node) == "leaky_relu"
        return _number(argument(node, 1, "negative_slope", 0.01)) if is_leaky else None
    if type(module) is nn.LeakyReLU and is_plain(module):
        return _number(module.negative_slope)
    if type(module) is nn.PReLU and is_plain(module) and module.weight.numel() == 1:
        return _number(float(module.weight))
    return None
