"""Data flow by recording: a forward pass on the meta device, without values or memory."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from adderize.dataflow.in_place import overlap
from adderize.dataflow.nodes import Flow, Node, function_name, is_leaf
from adderize.layers import AdderConv2d, AdderLinear, BinaryConv2d

_SELECTED = 2
# How often a line of the model's code gets the same answer, and how often another one.
_SAME_ANSWERS = 32
_TURNS = 4
_OTHER_ANSWERS: dict[type, tuple[float, float]] = {
    bool: (True, False), int: (2**16, 0), float: (1e12, 1e-12),
}  # fmt: skip
_SIDES = (224, 32, 64, 256, 299, 384, 28)
_IMAGE_LAYERS = (nn.Conv2d, AdderConv2d, BinaryConv2d)
# Their further arguments are places, not values.
_SAMPLERS = {"roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"}


def record(model: nn.Module, inputs: tuple[Any, ...]) -> Flow:
    """The flow of one forward pass on meta tensors; raises whatever the model raises."""
    flow = Flow("hooks")
    recorder = _Recorder(flow)
    for tensor in _tensors(inputs):
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
        with recorder, _AnySize():
            output = torch.func.functional_call(model, state, inputs)
    except Exception:
        if not all(flow.calls(module) for module in model.modules() if is_leaf(module)):
            raise
        # Every layer has run: what failed only dresses up the results.
        flow.end()
        return flow
    flow.end(recorder.sources(output))
    return flow


def floating_dtype(model: nn.Module) -> torch.dtype:
    """That of the first parameter of floating point, float32 where there is none."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def likely_inputs(model: nn.Module, example_input: Any = None) -> Iterator[tuple[Any, ...]]:
    """Meta tensors to try a model on: the example, or what the model says and looks like."""
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    if example_input is not None:
        arguments = example_input if isinstance(example_input, tuple) else (example_input,)
        yield tuple(pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), arguments))
        return
    blank = functools.partial(torch.empty, dtype=floating_dtype(model), device="meta")
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        yield (blank(2, *config["input_size"]),)
    first = next((m for m in model.modules() if isinstance(m, _IMAGE_LAYERS)), None)
    if first is not None:
        for side in _SIDES:
            yield (blank(2, first.in_channels, side, side),)
    dense = next((m for m in model.modules() if isinstance(m, (nn.Linear, AdderLinear))), None)
    if dense is not None:
        yield (blank(2, dense.in_features),)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


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
        return [self._makers[id(t)] for t in _tensors(tree) if id(t) in self._makers]

    def made(self, node: Node, tree: Any) -> None:
        for tensor in _tensors(tree):
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
        values = [t for t in _tensors((result, changed)) if _carries_gradient(t)]
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
            self._before = [(tensor, _version(tensor)) for tensor in _tensors(args)]
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


class EndlessError(Exception):
    """A model that goes on whatever its values are."""


class _AnySize(TorchDispatchMode):
    """Answers what depends on values, which meta tensors lack: a few elements are selected.

    A loop that goes on until values allow it to end gets other values now and then.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asked: Counter[tuple[str, int]] = Counter()

    def _scalar(self, tensor: Tensor) -> float | int | bool:
        kind = float if tensor.is_floating_point() else bool if tensor.dtype is torch.bool else int
        place = _asking_line()
        self._asked[place] += 1
        turn, usual = divmod(self._asked[place], _SAME_ANSWERS)
        if turn == _TURNS:
            raise EndlessError(f"{place} asks for values without an end")
        if usual or not turn:
            return kind(1)
        return _OTHER_ANSWERS[kind][turn % 2]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(tensor.is_meta for tensor in _tensors(args)):
            return func(*args, **kwargs)
        if func._schema.name == "aten::_local_scalar_dense":
            return self._scalar(args[0])
        answer = _ANSWERS.get(func._schema.name)
        if answer is None:
            return func(*args, **kwargs)
        return answer(func, *args, **kwargs)


def _nonzero(_: Any, mask: Tensor) -> Tensor:
    return torch.empty(min(mask.numel(), _SELECTED), mask.dim(), dtype=torch.long, device="meta")


def _index(func: Any, tensor: Tensor, indices: list[Tensor | None], *rest: Any) -> Any:
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            positions += _nonzero(None, index).unbind(1)
        else:
            positions.append(index)
    return func(tensor, positions, *rest)


def _asking_line() -> tuple[str, int]:
    """The line of the model's code, or of what it calls but torch, that asks for a value."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__"))
        if module != __name__ and module.split(".")[0] != "torch":
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _unique(_: Any, tensor: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor, Tensor]:
    values = tensor.flatten()[:_SELECTED]
    positions = torch.empty(tensor.shape, dtype=torch.long, device="meta")
    return values, positions, values.long()


_ANSWERS: dict[str, Callable[..., Any]] = {
    "aten::nonzero": _nonzero,
    "aten::index": _index,
    "aten::index_put_": _index,
    "aten::_unique2": _unique,
    "torchvision::nms": lambda _, boxes, *__: _nonzero(None, boxes[:, 0])[:, 0],
}
