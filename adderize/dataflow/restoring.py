"""A model's own code may change the model: this puts back whatever it changed."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_OF_LIBRARIES = ("torch.", "builtins", "timm.", "torchvision.", "lightning.", "pytorch_lightning.")


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[State]:
    """Put a model back at the end, also after an exception; gives the state it is put back to.

    Attributes of its modules, the values of buffers and other tensors that are not parameters, and
    the contents of lists, dictionaries, sets and deques, nested ones and those of classes and of
    helper objects of the model's own code among them.
    """
    state = State(model)
    try:
        yield state
    finally:
        state.restore()


class State:
    """What the attributes of a model's modules hold."""

    def __init__(self, model: nn.Module) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._seen: set[int] = set()
        kinds = {kind for m in model.modules() for kind in type(m).__mro__ if _is_own(kind)}
        self._own = {kind.__module__ for kind in kinds}
        self._visit(model)
        for kind in kinds:
            for value in vars(kind).values():
                if isinstance(value, (list, dict, set, deque)):
                    self._visit(value)

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and not value.is_meta:
                self._tensors.append((value, value.detach().clone()))
        elif isinstance(value, (list, dict, set, deque)):
            self._containers.append((value, value.copy()))
            for item in list(value.values() if isinstance(value, dict) else value):
                self._visit(item)
        elif isinstance(value, tuple):
            for item in value:
                self._visit(item)
        elif isinstance(value, nn.Module) or type(value).__module__ in self._own:
            self._visit(getattr(value, "__dict__", None))

    def has_other_tensors(self) -> bool:
        """Whether a tensor has changed since, or another one has taken its place."""
        if any(_differ(tensor, value) for tensor, value in self._tensors):
            return True
        return any(
            isinstance(before, Tensor) and isinstance(now, Tensor) and now is not before
            for container, content in self._containers
            for before, now in _pairs(content, container)
        )

    def restore(self) -> None:
        for container, content in self._containers:
            container.clear()
            if isinstance(container, (dict, set)):
                container.update(content)
            else:
                container.extend(content)
        with torch.no_grad():
            for tensor, value in self._tensors:
                if tensor.shape != value.shape:
                    tensor.data = value
                elif _differ(tensor, value):
                    tensor.data.copy_(value)


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a, b)


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """The items of two containers at the same places."""
    if isinstance(a, dict):
        yield from ((value, b[key]) for key, value in a.items() if key in b)
    elif not isinstance(a, set):
        yield from zip(a, b, strict=False)


def _is_own(kind: type) -> bool:
    return not f"{kind.__module__}.".startswith(_OF_LIBRARIES)
