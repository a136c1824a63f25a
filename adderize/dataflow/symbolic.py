"""Data flow by symbolic tracing: torch.fx, which needs no input."""

from __future__ import annotations

from torch import fx, nn
from torch.utils import _pytree as pytree

from adderize.dataflow.nodes import Flow, Node, function_name, is_leaf

_QUERIES = {"size", "dim", "numel", "stride", "is_contiguous", "get_device", "element_size"}
_TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data"}


def trace_symbolically(model: nn.Module) -> Flow:
    """The flow by torch.fx; raises whatever the model raises where it cannot be traced."""
    flow = Flow("fx")
    if is_leaf(model):
        flow.end([flow.add(type(model).__name__, [flow.add("input")], model)])
        return flow
    graph = LayerTracer().trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[fx.Node, Node | None] = {}
    for node in graph.nodes:
        tensors = [tensor for source in node.all_input_nodes if (tensor := made[source])]
        if node.op == "placeholder":
            made[node] = flow.add("input")
        elif node.op == "output":
            flow.end(tensors)
        elif node.op == "call_module":
            module = modules[node.target]
            made[node] = flow.add(type(module).__name__, tensors, module)
        # Sizes, parameters and what is computed from them alone carry nothing of the input.
        elif node.op == "get_attr" or is_query(node) or not tensors:
            made[node] = None
        else:
            leaves = pytree.tree_leaves((node.args, node.kwargs))
            constants = [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]
            made[node] = flow.add(function_name(node.target), tensors, None, constants)
    return flow


class LayerTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


def is_query(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] not in _TENSOR_ATTRIBUTES
    return node.op == "call_method" and node.target in _QUERIES
