"""Which calls of a traced network change a tensor in place."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from adderize.dataflow.graphs import module_of

PLAIN_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}


def thread_changes(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Let what reads a tensor after it was changed in place read the call that changed it.

    Returns:
        the calls that change a tensor, and which one; the calls themselves still do.
    """
    changes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        changed = changed_in_place(node)
        if changed is not None:
            changes[node] = changed
            later = {user for user in changed.users if user > node}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return changes


def changed_in_place(node: fx.Node) -> fx.Node | None:
    """The tensor that a call changes in place, None if there is none."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, fx.Node) and _changes_first(node) else None


def _changes_first(node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(module_of(node), "inplace", False) is True
    if node.op not in ("call_function", "call_method"):
        return False
    position = inplace_position(node)
    if node.target in PLAIN_OPERATORS or node.target is operator.setitem:
        return True
    if node.kwargs.get("inplace") is True:
        return True
    if position is not None and node.args[position : position + 1] == (True,):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def inplace_position(node: fx.Node) -> int | None:
    """Where a function takes `inplace` by position."""
    is_function = node.op == "call_function" and callable(node.target)
    return _inplace_position(node.target) if is_function else None


@functools.cache
def _inplace_position(function: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # torch's functions that are not written in Python
        return None
    return names.index("inplace") if "inplace" in names else None


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share elements of memory."""
    storage, others = one.untyped_storage(), other.untyped_storage()
    # Meta tensors have no address; NumPy gives one memory to several storages.
    same = storage._cdata == others._cdata or 0 != storage.data_ptr() == others.data_ptr()
    if not same:
        return False
    layouts = [(t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (one, other)]
    if layouts[0] == layouts[1] or one.dtype != other.dtype:
        return True
    places = torch.zeros(storage.nbytes() // one.element_size(), dtype=torch.bool, device="cpu")
    places.as_strided(one.size(), one.stride(), one.storage_offset()).fill_(True)
    return bool(places.as_strided(other.size(), other.stride(), other.storage_offset()).any())
