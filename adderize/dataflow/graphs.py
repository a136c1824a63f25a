"""Nodes of torch.fx's graphs: what they call, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn
from torch.fx import Node

from adderize.dataflow.nodes import function_name

# Methods and attributes that tell about a tensor; all others may be one (`.real`, `.values`).
_QUERIES = {
    "data_ptr", "device", "dim", "dtype", "element_size", "get_device", "grad_fn", "is_complex",
    "is_contiguous", "is_cpu", "is_cuda", "is_floating_point", "is_inference", "is_leaf", "is_meta",
    "is_mps", "is_nested", "is_quantized", "is_signed", "is_sparse", "is_xpu", "itemsize", "layout",
    "names", "nbytes", "ndim", "ndimension", "nelement", "numel", "output_nr", "requires_grad",
    "shape", "size", "storage_offset", "stride", "_version",
}  # fmt: skip


def module_of(node: Node) -> nn.Module | None:
    """The module that a node calls."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner and node.op == "call_module" else None


def operation(node: Node) -> str:
    """What a node does: a module's class, or the name of a function or method."""
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return function_name(node.target) if node.op in ("call_function", "call_method") else node.op


def attribute(node: Node) -> Any:
    """The name of the method that a node calls or of the attribute that it reads; else None."""
    if node.op == "call_method":
        return node.target
    return node.args[1] if node.target is getattr else None


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """What a function or method is given, by position or by name."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def is_idle_dropout(node: Node) -> bool:
    """Whether a node calls a dropout function, or stochastic depth, that drops nothing."""
    name = operation(node)
    if node.op == "call_module" or not ("dropout" in name or name == "stochastic_depth"):
        return False
    position = 3 if name == "stochastic_depth" else 2
    training = argument(node, position, "training", node.kwargs.get("train"))
    return training is False or argument(node, 1, "p") == 0


def is_query(node: Node) -> bool:
    """Whether a node asks for a property of a tensor, not for values."""
    return attribute(node) in _QUERIES


def watched(network: fx.GraphModule, inputs: Any, look: Callable[[Node, Any], None]) -> Any:
    """Runs a network and shows every node's value to a function; gives the output."""
    return _Watcher(network, look).run(inputs)


class _Watcher(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, look: Callable[[Node, Any], None]) -> None:
        super().__init__(network)
        self._look = look

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self._look(n, value)
        return value


def value_of(node: Node, known: Mapping[Node, Any]) -> Any:
    """What a node of a network makes of the values of the nodes that it reads."""
    owner = node.graph.owning_module
    assert owner is not None
    interpreter = fx.Interpreter(owner, garbage_collect_values=False)
    interpreter.env = {source: known[source] for source in node.all_input_nodes}
    return interpreter.run_node(node)
