"""What a model holds, however deep, and how to put it back."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import mmap
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

# Their objects are the surroundings of a model: trainers, loaders, streams, locks.
_SURROUNDINGS = {
    "_io", "_thread", "asyncio", "builtins", "concurrent", "lightning", "lightning_fabric",
    "logging", "multiprocessing", "numpy", "pytorch_lightning", "queue", "threading", "torch",
    "weakref",
}  # fmt: skip
_ATOMS = (int, float, complex, str, bytes, type(None), ModuleType)
_CONTAINERS = (dict, list, set, deque, bytearray)
_COUNTERS = (itertools.count, itertools.cycle)
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
        return any(_differ(tensor, saved) for tensor, saved in self._values) or any(
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
        if isinstance(item, _CONTAINERS):
            saved = _counted(_plain(item))
            self._contents.append((item, saved))
            self._note(_refill, item, saved)
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
        if not _has_memory(tensor):
            return
        self.memory.add(tensor.untyped_storage()._cdata)
        self._note(_put_back_tensor, tensor, tensor.detach(), tensor.requires_grad)
        if self._copies_values and not isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            self._values.append((tensor, tensor.detach().clone()))
            self._note(_put_back_values, *self._values[-1])

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
        self._note(_put_back_class, kind, saved)
        module = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        if id(module) not in self._seen:
            self._seen[id(module)] = module
            self._take_globals(module)
        self._take_globals(saved)
        return [getattr(value, "__func__", value) for value in saved.values()]

    def _take_globals(self, names: dict[str, Any]) -> None:
        for value in names.values():
            if isinstance(value, _CACHES):
                self._note(_forget, value, value.cache_info().misses)
            elif isinstance(value, _CONTAINERS):
                self._note(_drop_stand_ins, value, _plain(value))


def _package(kind: type) -> str:
    return kind.__module__.split(".")[0]


def _plain(container: Any) -> Any:
    """A container as one of Python's own class, whatever a subclass does when it is copied."""
    if isinstance(container, dict):
        return dict(_dict_kind(container).items(container))
    return next(kind for kind in _CONTAINERS if isinstance(container, kind))(container)


def _counted(saved: Any) -> Any:
    """A counter cannot be set back: copies of it take its place."""
    for key, value in saved.items() if isinstance(saved, dict) else ():
        if isinstance(value, _COUNTERS):
            saved = {**saved, key: copy.copy(value)}
    return saved


def _dict_kind(container: Any) -> Any:
    return OrderedDict if isinstance(container, OrderedDict) else dict


def _refill(container: Any, saved: Any) -> None:
    if isinstance(container, dict):
        kind = _dict_kind(container)
        now, then = kind.items(container), saved.items()
        if len(now) != len(then) or any(
            a is not b or x is not y for (a, x), (b, y) in zip(now, then, strict=True)
        ):
            kind.clear(container)
            kind.update(container, _counted(saved))
    elif isinstance(container, (list, bytearray)):
        container[:] = saved
    else:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(saved)


def _drop_stand_ins(container: Any, saved: Any) -> None:
    values = container.values() if isinstance(container, dict) else container
    inner = (v if isinstance(v, (list, tuple)) else (v,) for v in values)
    if any(_is_stand_in(value) for several in inner for value in several):
        _refill(container, saved)


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, fx.Proxy) or (isinstance(value, Tensor) and value.is_meta)


def _forget(cache: Any, misses: int) -> None:
    if cache.cache_info().misses != misses:
        cache.cache_clear()


def _put_back_class(kind: type, saved: dict[str, Any]) -> None:
    for key in [key for key in vars(kind) if not key.startswith("__") and key not in saved]:
        delattr(kind, key)
    for key, value in saved.items():
        if vars(kind).get(key) is not value:
            setattr(kind, key, value)


def _has_memory(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def _put_back_tensor(tensor: Tensor, saved: Tensor, requires_grad: bool) -> None:
    described = [(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in (tensor, saved)]
    if described[0] != described[1] or not _share_memory(tensor, saved):
        tensor.data = saved
    if tensor.requires_grad != requires_grad and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)


def _put_back_values(tensor: Tensor, saved: Tensor) -> None:
    if _differ(tensor, saved):
        tensor.data.copy_(saved)


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def _pairs(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    """The items of two containers at the same places."""
    if isinstance(one, dict):
        return ((value, other[key]) for key, value in one.items() if key in other)
    return () if isinstance(one, set) else zip(one, other, strict=False)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _is_file(array: Any) -> bool:
    """Whether an array is a file's contents, of any size, and not of this process alone."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def _put_back_array(array: Any, saved: Any) -> None:
    if array.tobytes() != saved.tobytes():
        array[...] = saved


def state_of(item: Any) -> tuple[Any, ...] | None:
    """How to put back what is neither a container nor made of attributes."""
    if isinstance(item, torch.Generator):
        return item.set_state, item.get_state()
    if isinstance(item, random.Random):
        return item.setstate, item.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(item, numpy.ndarray) and item.flags.writeable and not item.dtype.hasobject:
        return None if _is_file(item) else (_put_back_array, item, item.copy())
    if isinstance(item, numpy.random.RandomState):
        return item.set_state, item.get_state()
    if isinstance(item, numpy.random.Generator):
        return setattr, item.bit_generator, "state", item.bit_generator.state
    return None
