"""Data flow by recording: a forward pass on the meta device, without values or memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from adderize.dataflow.answers import AnySize, tensors_in
from adderize.dataflow.in_place import overlap
from adderize.dataflow.nodes import Flow, Node, function_name, is_leaf

# Their further arguments are places, not values.
_SAMPLERS = {"roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"}


def record(model: nn.Module, inputs: tuple[Any, ...]) -> Flow:
    """The flow of one forward pass on meta tensors; raises whatever the model raises."""
    flow = Flow("hooks")
    recorder = _Recorder(flow)
    for tensor in tensors_in(inputs):
        recorder.made(flow.add("input"), tensor)
    for module in model.modules():
        if is_leaf(module):
            recorder.watch(module)
    state: dict[str, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[name] = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            recorder.stands_for(state[name], tensor)
    try:
        with recorder, AnySize():
            output = torch.func.functional_call(model, state, inputs)
    except Exception:
        if not all(flow.calls(module) for module in model.modules() if is_leaf(module)):
            raise
        # Every layer has run: what failed only dresses up the results.
        flow.end()
        return flow
    flow.end(recorder.sources(output))
    return flow


class _Recorder(TorchFunctionMode):
    """Records which call made each tensor; silent inside a leaf module."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self._flow = flow
        self._makers: dict[int, Node] = {}
        # By their memory. Every tensor is kept alive: the identity of a freed one could be given
        # out again.
        self._kept: dict[int, list[Tensor]] = {}
        self._parameters: dict[int, set[nn.Parameter]] = {}
        self._depth = 0

    def sources(self, tree: Any) -> list[Node]:
        return [self._makers[id(t)] for t in tensors_in(tree) if id(t) in self._makers]

    def made(self, node: Node, tree: Any) -> None:
        for tensor in tensors_in(tree):
            self._makers[id(tensor)] = node
            self._keep(tensor)

    def stands_for(self, tensor: Tensor, parameter: nn.Parameter) -> None:
        self._parameters[id(tensor)] = {parameter}
        self._keep(tensor)

    def _keep(self, tensor: Tensor) -> None:
        self._kept.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def _changed(self, node: Node, tensors: list[Tensor]) -> None:
        """What was changed in place, and whatever shares its memory, is what the node made."""
        for tensor in tensors:
            self.made(node, tensor)
            for other in self._kept[tensor.untyped_storage()._cdata]:
                if overlap(tensor, other):
                    self._makers[id(other)] = node

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = [] if self._depth else pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        versions = [*map(_version, tensors)]
        result = func(*args, **kwargs)
        if self._depth:
            return result
        name = function_name(func)
        sources = self.sources(tensors)
        changed = [
            t for t, version in zip(tensors, versions, strict=True) if _version(t) != version
        ]
        # Indices and masks carry no gradient, so they are not part of the data flow.
        values = [t for t in tensors_in((result, changed)) if _carries_gradient(t)]
        parameters = {p for t in tensors for p in self._parameters.get(id(t), ())}
        if sources and values:
            constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
            read = sources[:1] if name in _SAMPLERS else sources
            node = self._flow.add(name, read, None, constants, parameters)
            self.made(node, values)
            self._changed(node, changed)
        elif parameters:
            for value in values:
                self._parameters[id(value)] = parameters
                self._keep(value)
        return result

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._depth == 0:
            self._before = [(tensor, _version(tensor)) for tensor in tensors_in(args)]
        self._depth += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            sources = self.sources((args, kwargs))
            node = self._flow.add(type(module).__name__, sources, module)
            self.made(node, output)
            self._changed(node, [t for t, version in self._before if _version(t) != version])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _carries_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
