"""What a model holds, however deep, and how to put it back."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from adderize.dataflow.put_back import (
    CONTAINERS,
    counted,
    differ,
    drop_stand_ins,
    forget,
    has_memory,
    plain,
    put_back_class,
    put_back_tensor,
    put_back_values,
    refill,
    state_of,
)

# Their objects are the surroundings of a model: trainers, loaders, streams, locks.
_SURROUNDINGS = {
    "_io", "_thread", "asyncio", "builtins", "concurrent", "lightning", "lightning_fabric",
    "logging", "multiprocessing", "numpy", "pytorch_lightning", "queue", "threading", "torch",
    "weakref",
}  # fmt: skip
_ATOMS = (int, float, complex, str, bytes, type(None), ModuleType)
_CACHES = type(functools.lru_cache(lambda: None))


class Snapshot:
    """Everything that a root refers to.

    Put back are the entries of containers, the attributes of objects and of their classes,
    closures, default arguments, arrays, random generators, counters, and the memory that tensors
    refer to. ``functools.lru_cache`` forgets what it has seen since, and global containers what
    stands in for tensors.

    Args:
        values: keep copies of the values in tensors that are not parameters, too.

    Attributes:
        tensors: all that were found, parameters among them.
        memory: that of the tensors.
    """

    def __init__(self, root: Any, *, values: bool) -> None:
        self._copies_values = values
        self._values: list[tuple[Tensor, Tensor]] = []
        self._contents: list[tuple[Any, Any]] = []
        self.tensors: list[Tensor] = []
        self.memory: set[int] = set()
        self._undo: list[tuple[Any, ...]] = []
        # Alive, so that no identity is given out again.
        self._seen: dict[int, Any] = {}
        waiting = [root]
        while waiting:
            item = waiting.pop()
            if id(item) not in self._seen:
                self._seen[id(item)] = item
                # Objects of a user may raise anything where one looks at them.
                with contextlib.suppress(Exception):
                    waiting += () if isinstance(item, _ATOMS) else self._take(item)

    def put_back(self) -> None:
        for undo, *arguments in self._undo:
            undo(*arguments)

    def has_other_tensors(self) -> bool:
        """Whether a tensor's values have changed since, or another one has taken its place."""
        return any(differ(tensor, saved) for tensor, saved in self._values) or any(
            isinstance(before, Tensor) and isinstance(now, Tensor) and now is not before
            for container, saved in self._contents
            for before, now in _pairs(saved, container)
        )

    def _take(self, item: Any) -> Iterable[Any]:
        """Note how to put one item back; gives what it refers to."""
        if isinstance(item, Tensor):
            self._take_tensor(item)
            return ()
        inner: list[Any] = []
        if isinstance(item, CONTAINERS):
            saved = counted(plain(item))
            self._contents.append((item, saved))
            self._note(refill, item, saved)
            inner += saved.values() if isinstance(saved, dict) else saved
        elif isinstance(item, (tuple, frozenset)):
            inner += item
        elif isinstance(item, (MethodType, BuiltinMethodType)):
            inner += [item.__self__, getattr(item, "__func__", None)]
        elif isinstance(item, functools.partial):
            inner += [item.func, item.args, item.keywords]
        elif isinstance(item, FunctionType):
            inner += [item.__closure__, item.__defaults__, item.__kwdefaults__]
        elif isinstance(item, CellType):
            inner += self._take_cell(item)
        elif isinstance(item, type):
            return self._take_class(item)
        elif (state := state_of(item)) is not None:
            self._note(*state)
            return ()
        if isinstance(item, nn.Module) or _package(type(item)) not in _SURROUNDINGS:
            inner += self._take_attributes(item)
        return inner

    def _take_tensor(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        if not has_memory(tensor):
            return
        self.memory.add(tensor.untyped_storage()._cdata)
        self._note(put_back_tensor, tensor, tensor.detach(), tensor.requires_grad)
        if self._copies_values and not isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            self._values.append((tensor, tensor.detach().clone()))
            self._note(put_back_values, *self._values[-1])

    def _note(self, undo: Callable[..., Any], *arguments: Any) -> None:
        self._undo.append((undo, *arguments))

    def _take_cell(self, cell: CellType) -> Iterable[Any]:
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            return ()
        self._note(setattr, cell, "cell_contents", content)
        return (content,)

    def _take_attributes(self, item: Any) -> Iterable[Any]:
        found: list[Any] = [*type(item).__mro__]
        attributes = getattr(item, "__dict__", None)
        if isinstance(attributes, dict):
            found.append(attributes)
        for kind in type(item).__mro__:
            names = vars(kind).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                slot = vars(kind).get(name)
                if slot is not None and hasattr(slot, "__set__") and hasattr(item, name):
                    found.append(slot.__get__(item))
                    self._note(slot.__set__, item, found[-1])
        return found

    def _take_class(self, kind: type) -> Iterable[Any]:
        if _package(kind) in _SURROUNDINGS:
            return ()
        saved = {key: value for key, value in vars(kind).items() if not key.startswith("__")}
        self._note(put_back_class, kind, saved)
        module = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        if id(module) not in self._seen:
            self._seen[id(module)] = module
            self._take_globals(module)
        self._take_globals(saved)
        return [getattr(value, "__func__", value) for value in saved.values()]

    def _take_globals(self, names: dict[str, Any]) -> None:
        for value in names.values():
            if isinstance(value, _CACHES):
                self._note(forget, value, value.cache_info().misses)
            elif isinstance(value, CONTAINERS):
                self._note(drop_stand_ins, value, plain(value))


def _package(kind: type) -> str:
    return kind.__module__.split(".")[0]


def _pairs(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    """The items of two containers at the same places."""
    if isinstance(one, dict):
        return ((value, other[key]) for key, value in one.items() if key in other)
    return () if isinstance(one, set) else zip(one, other, strict=False)
