"""The data flow between the layers of a model, traced without running its arithmetic."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from adderize.layers import AdderLinear

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_QUERIES = {"size", "dim", "numel", "stride", "is_contiguous", "get_device", "element_size"}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_SIDES = (224, 32, 64, 256, 299, 384, 28)


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of the module is one node: norms, layers with filters, torch's own modules."""
    if isinstance(module, (*NORMS, _ConvNd, nn.Linear, AdderLinear)):
        return True
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)


@dataclass(eq=False)
class Node:
    """One call of a module or a function.

    Attributes:
        name: the function's name, the module's class name, ``"input"`` or ``"output"``.
        module: the called module, None for functions.
        constants: the arguments that are no tensors.
        sources: the calls whose results are read, users: those that read this one's.
    """

    name: str
    module: nn.Module | None = None
    constants: list[Any] = field(default_factory=list)
    sources: list[Node] = field(default_factory=list)
    users: list[Node] = field(default_factory=list)


class Flow:
    """Calls in order of execution; ``method`` says how they were found: "fx" or "hooks"."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.nodes: list[Node] = []
        self._calls: dict[int, list[Node]] = {}

    def add(
        self,
        name: str,
        sources: list[Node],
        module: nn.Module | None = None,
        constants: list[Any] | None = None,
    ) -> Node:
        node = Node(name, module, constants or [], list(dict.fromkeys(sources)))
        for source in node.sources:
            source.users.append(node)
        self.nodes.append(node)
        if module is not None:
            self._calls.setdefault(id(module), []).append(node)
        return node

    def calls(self, module: nn.Module) -> list[Node]:
        return self._calls.get(id(module), [])

    def prune(self) -> Flow:
        """Leave out what never reaches the output: checks, sizes, unused chunks."""
        alive = {id(node) for node in self.nodes if node.name == "output"}
        for node in reversed(self.nodes):
            if any(id(user) in alive for user in node.users):
                alive.add(id(node))
        for node in self.nodes:
            node.users = [user for user in node.users if id(user) in alive]
        self.nodes = [node for node in self.nodes if id(node) in alive]
        self._calls = {}
        for node in self.nodes:
            if node.module is not None:
                self._calls.setdefault(id(node.module), []).append(node)
        return self


def trace(model: nn.Module, example_input: Any = None) -> list[Flow]:
    """Trace a model in training mode and, for what only evaluation runs, in evaluation mode.

    torch.fx where the model traces; otherwise a forward on the meta device with recording hooks,
    on ``example_input`` (a tensor, or a tuple of arguments) or on inputs guessed from the model.
    The model is left as it was.

    Returns:
        the flows, the one in training mode first; empty where nothing worked.
    """
    flows = []
    for training in (True, False):
        for method in (_trace_fx, _trace_hooks):
            with _undisturbed(model, training), torch.no_grad():
                try:
                    flow = method(model, example_input)
                # A model's own code runs here on stand-ins for tensors: it may raise anything.
                except Exception:
                    continue
            flows.append(flow.prune())
            break
        if flows and all(flows[0].calls(module) for module in filter(is_leaf, model.modules())):
            break
    return flows


@contextlib.contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module in the given mode and without hooks; attributes are put back at the end."""
    saved = []
    for module in model.modules():
        before = dict(module.__dict__)
        tables = {key: dict(before[key]) for key in ("_parameters", "_buffers", "_modules")}
        saved.append((module, before, tables))
    try:
        for module, *_ in saved:
            module.__dict__.update({table: OrderedDict() for table in _HOOKS}, training=training)
        yield
    finally:
        for module, before, tables in saved:
            module.__dict__.clear()
            module.__dict__.update(before)
            for key, table in tables.items():
                before[key].clear()
                before[key].update(table)


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


def _trace_fx(model: nn.Module, _: Any) -> Flow:
    if is_leaf(model):
        return _single_call(model)
    graph = _LayerTracer().trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    flow = Flow("fx")
    made: dict[fx.Node, Node | None] = {}
    for node in graph.nodes:
        sources = [made[source] for source in node.all_input_nodes]
        tensors = [source for source in sources if source is not None]
        if node.op == "placeholder":
            made[node] = flow.add("input", [])
        elif node.op == "output":
            flow.add("output", tensors)
        elif node.op == "get_attr" or _is_query(node) or (sources and not tensors):
            made[node] = None
        elif node.op == "call_module":
            module = modules[node.target]
            made[node] = flow.add(type(module).__name__, tensors, module)
        else:
            leaves = pytree.tree_leaves((node.args, node.kwargs))
            constants = [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]
            made[node] = flow.add(_function_name(node.target), tensors, None, constants)
    return flow


def _single_call(model: nn.Module) -> Flow:
    flow = Flow("fx")
    call = flow.add(type(model).__name__, [flow.add("input", [])], model)
    flow.add("output", [call])
    return flow


def _is_query(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] not in ("T", "mT", "H", "mH", "data")
    return node.op == "call_method" and node.target in _QUERIES


def _function_name(target: Any) -> str:
    name: str = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_")


class _Recorder(TorchFunctionMode):
    """Records which call made each tensor; silent inside a leaf module."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self._flow = flow
        self._makers: dict[int, Node] = {}
        # Keeps every tensor alive: the identity of a freed one could be given out again.
        self._kept: list[Tensor] = []
        self._depth = 0

    def tensors(self, tree: Any) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]

    def sources(self, tree: Any) -> list[Node]:
        return [self._makers[id(t)] for t in self.tensors(tree) if id(t) in self._makers]

    def made(self, node: Node, tree: Any) -> None:
        for tensor in self.tensors(tree):
            self._makers[id(tensor)] = node
            self._kept.append(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._depth:
            return result
        name = _function_name(func)
        # `x[...] = y` returns nothing, and changes x.
        target = args[0] if name == "setitem" else result
        sources = self.sources((args, kwargs))
        if sources and self.tensors(target):
            constants = [
                leaf for leaf in pytree.tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)
            ]
            self.made(self._flow.add(name, sources, None, constants), target)
        return result

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            sources = self.sources((args, kwargs))
            self.made(self._flow.add(type(module).__name__, sources, module), output)


def _trace_hooks(model: nn.Module, example_input: Any) -> Flow:
    error: Exception | None = None
    for inputs in _inputs(model, example_input):
        try:
            with _undisturbed(model, model.training):
                return _record(model, inputs)
        except Exception as failure:
            error = failure
    raise error or RuntimeError("no input fits")


def _record(model: nn.Module, inputs: Any) -> Flow:
    flow = Flow("hooks")
    recorder = _Recorder(flow)
    for tensor in recorder.tensors(inputs):
        recorder.made(flow.add("input", []), tensor)
    for module in model.modules():
        if is_leaf(module):
            recorder.watch(module)
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with recorder:
        output = torch.func.functional_call(model, state, inputs)
    flow.add("output", recorder.sources(output))
    return flow


def _inputs(model: nn.Module, example_input: Any) -> Iterator[tuple[Any, ...]]:
    if example_input is not None:
        arguments = example_input if isinstance(example_input, tuple) else (example_input,)
        to_meta = pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), arguments)
        yield cast(tuple[Any, ...], to_meta)
        return
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if size:
        yield (torch.empty(2, *size, device="meta"),)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None:
        for side in _SIDES:
            yield (torch.empty(2, first.in_channels, side, side, device="meta"),)
    dense = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if dense is not None:
        yield (torch.empty(2, dense.in_features, device="meta"),)
