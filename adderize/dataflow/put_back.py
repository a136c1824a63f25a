"""How each kind of object is put back to what it was: containers, classes, tensors, generators."""

from __future__ import annotations

import copy
import itertools
import mmap
import random
import sys
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor, fx, nn

CONTAINERS = (dict, list, set, deque, bytearray)
_COUNTERS = (itertools.count, itertools.cycle)


def plain(container: Any) -> Any:
    """A container as one of Python's own class, whatever a subclass does when it is copied."""
    if isinstance(container, dict):
        return dict(_dict_kind(container).items(container))
    return next(kind for kind in CONTAINERS if isinstance(container, kind))(container)


def counted(saved: Any) -> Any:
    """A counter cannot be set back: copies of it take its place."""
    for key, value in saved.items() if isinstance(saved, dict) else ():
        if isinstance(value, _COUNTERS):
            saved = {**saved, key: copy.copy(value)}
    return saved


def _dict_kind(container: Any) -> Any:
    return OrderedDict if isinstance(container, OrderedDict) else dict


def refill(container: Any, saved: Any) -> None:
    if isinstance(container, dict):
        kind = _dict_kind(container)
        now, then = kind.items(container), saved.items()
        if len(now) != len(then) or any(
            a is not b or x is not y for (a, x), (b, y) in zip(now, then, strict=True)
        ):
            kind.clear(container)
            kind.update(container, counted(saved))
    elif isinstance(container, (list, bytearray)):
        container[:] = saved
    else:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(saved)


def drop_stand_ins(container: Any, saved: Any) -> None:
    values = container.values() if isinstance(container, dict) else container
    inner = (v if isinstance(v, (list, tuple)) else (v,) for v in values)
    if any(_is_stand_in(value) for several in inner for value in several):
        refill(container, saved)


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, fx.Proxy) or (isinstance(value, Tensor) and value.is_meta)


def forget(cache: Any, misses: int) -> None:
    if cache.cache_info().misses != misses:
        cache.cache_clear()


def put_back_class(kind: type, saved: dict[str, Any]) -> None:
    for key in [key for key in vars(kind) if not key.startswith("__") and key not in saved]:
        delattr(kind, key)
    for key, value in saved.items():
        if vars(kind).get(key) is not value:
            setattr(kind, key, value)


def has_memory(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def put_back_tensor(tensor: Tensor, saved: Tensor, requires_grad: bool) -> None:
    described = [(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in (tensor, saved)]
    if described[0] != described[1] or not _share_memory(tensor, saved):
        tensor.data = saved
    if tensor.requires_grad != requires_grad and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)


def put_back_values(tensor: Tensor, saved: Tensor) -> None:
    if differ(tensor, saved):
        tensor.data.copy_(saved)


def differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


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
