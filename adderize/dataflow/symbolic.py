"""Data flow by symbolic tracing: torch.fx, which needs no input."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from adderize.dataflow.graphs import is_query, module_of
from adderize.dataflow.in_place import PLAIN_OPERATORS, changed_in_place
from adderize.dataflow.memory import Memory, seen_through
from adderize.dataflow.nodes import ONE_AT_A_TIME, Flow, Node, function_name, is_leaf


def trace_symbolically(model: nn.Module, arguments: int = 1) -> Flow:
    """The flow of a call with so many arguments; raises whatever the model raises.

    Further arguments have their defaults, as in that call.
    """
    flow = Flow("fx")
    if is_leaf(model):
        flow.end([flow.add(type(model).__name__, [flow.add("input")], model)])
        return flow
    if "forward" in vars(model):
        raise NotImplementedError("torch.fx traces the forward of the class")
    _Reading(model, flow).read(_CallTracer(arguments).trace(model))
    return flow


def unseen_change(model: nn.Module) -> str | None:
    """A change in place that a graph of values does not show; None where there is none.

    It shows changes of the very tensor that is read later; not those of what shares its memory, nor
    those of ``y += x`` to whoever keeps the old ``y``. Raises whatever tracing the model raises.
    """
    memory = Memory()
    for node in _CallTracer(1).trace(model).nodes:
        changed = changed_in_place(node)
        if changed is not None and not is_query(changed):
            for value in memory.touched(changed):
                is_shown = value is changed and node.target not in PLAIN_OPERATORS
                if not is_shown and any(user > node for user in value.users):
                    return f"{node.name} changes {value.name} in place, which is read later"
        source = changed or seen_through(node)
        if source is not None:
            memory.share(node, source)
    return None


class _Reading:
    """From a graph to a flow, with changes in place as what later calls read."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._flow = flow
        # None for sizes, parameters and what is computed from them alone.
        self._made: dict[fx.Node, Node | None] = {}
        self._read: dict[fx.Node, set[nn.Parameter]] = {}
        self._memory = Memory()

    def read(self, graph: fx.Graph) -> None:
        attributes: dict[str, fx.Node] = {}
        for node in graph.nodes:
            tensors = [made for source in node.all_input_nodes if (made := self._made[source])]
            if node.op == "output":
                self._flow.end(tensors)
                continue
            name = str(node.target)
            self._made[node] = self._flow.add("input") if node.op == "placeholder" else None
            self._read[node] = self._parameters_of(node)
            if node.op == "get_attr" and attributes.setdefault(name, node) is not node:
                self._memory.share(node, attributes[name])
                self._made[node] = self._made[attributes[name]]
            elif node.op.startswith("call_") and not is_query(node):
                self._call(node, tensors)

    def _call(self, node: fx.Node, tensors: list[Node]) -> None:
        module, changed = module_of(node), changed_in_place(node)
        # A layer may also work on what does not come from the input, such as positions.
        if tensors or module is not None:
            made = self._made[node] = self._add(node, module, tensors)
            for value in () if changed is None else self._memory.touched(changed):
                self._made[value] = made
        source = changed or seen_through(node)
        if source is not None:
            self._memory.share(node, source)

    def _add(self, node: fx.Node, module: nn.Module | None, tensors: list[Node]) -> Node:
        if module is not None:
            return self._flow.add(type(module).__name__, tensors, module)
        leaves = pytree.tree_leaves((node.args, node.kwargs))
        constants = [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]
        return self._flow.add(
            function_name(node.target), tensors, None, constants, self._read[node]
        )

    def _parameters_of(self, node: fx.Node) -> set[nn.Parameter]:
        """The parameters that a value is, or is computed from without the model's input."""
        if node.op == "get_attr":
            parameter = self._parameters.get(str(node.target))
            return set() if parameter is None else {parameter}
        return {
            parameter
            for source in node.all_input_nodes
            if self._made[source] is None
            for parameter in self._read[source]
        }


class LayerTracer(fx.Tracer):
    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ONE_AT_A_TIME:
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or ("forward" not in vars(m) and super().is_leaf_module(m, ""))

    def create_arg(self, a: Any) -> Any:
        """Dataclasses are made again when the graph runs; of those that are dicts as well, as
        transformers' `ModelOutput`, torch.fx would keep the dict alone."""
        if not dataclasses.is_dataclass(a) or isinstance(a, type):
            return super().create_arg(a)
        values = {f.name: getattr(a, f.name) for f in dataclasses.fields(a) if f.init}
        again = type(a)(**values)
        if any(getattr(again, name) is not value for name, value in values.items()):
            raise NotImplementedError(f"{type(a).__name__} computes with what it is given")
        arguments: Any = super().create_arg(values)
        return self.create_node("call_function", type(a), (), arguments)


class _CallTracer(LayerTracer):
    """Traces a call with a number of arguments, and changes in place as they are."""

    def __init__(self, arguments: int) -> None:
        super().__init__()
        self._arguments = arguments

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        graph = super().trace(root, concrete_args)
        graph.owning_module = root  # of which module_of() asks for what is called
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Changeable(node, self)

    def _proxy_placeholder(
        self,
        name: str,
        concrete_args: dict[str, Any] | None,
        sig: inspect.Signature,
        fn_for_analysis: Callable[..., Any],
    ) -> Any:
        names = [key for key, p in sig.parameters.items() if p.kind is not p.VAR_KEYWORD]
        if name.startswith("**"):
            return {}
        position = names.index(name.lstrip("*")) - 1  # after self
        if name.startswith("*"):
            further = range(position, self._arguments)
            return tuple(self.create_proxy("placeholder", f"input_{i}", (), {}) for i in further)
        default = sig.parameters[name].default
        if position >= self._arguments and default is not inspect.Parameter.empty:
            return default
        return super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)


class _Changeable(fx.Proxy):
    """A value that may be changed in place, as a tensor may."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def change(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return change


for _function in PLAIN_OPERATORS:
    setattr(_Changeable, f"__{_function.__name__}__", _in_place(_function))
