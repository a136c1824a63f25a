"""Which values of a traced graph share memory: who sees a change in place."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from adderize.dataflow.graphs import attribute, is_idle_dropout, module_of
from adderize.dataflow.nodes import function_name

# Their results share memory with their first argument, or may do so.
_VIEWS = frozenset({
    "T", "H", "mT", "mH", "adjoint", "as_strided", "chunk", "contiguous", "data", "detach",
    "diagonal", "dsplit", "expand", "expand_as", "flatten", "float", "getitem", "hsplit", "imag",
    "movedim", "moveaxis", "narrow", "permute", "ravel", "real", "reshape", "reshape_as", "select",
    "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "to",
    "transpose", "type", "type_as", "unbind", "unflatten", "unfold", "unsqueeze", "view",
    "view_as", "vsplit",
})  # fmt: skip
_VIEWING_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten)
_PARTS = frozenset({"chunk", "dsplit", "hsplit", "split", "split_with_sizes", "tensor_split",
                    "unbind", "vsplit"})  # fmt: skip


def seen_through(node: fx.Node) -> fx.Node | None:
    """The argument whose memory a call's result shares, or may share."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    module = module_of(node)
    if module is not None:
        views = isinstance(module, _VIEWING_MODULES) or (
            isinstance(module, nn.modules.dropout._DropoutNd)
            and not (module.training and module.p > 0)
        )
        return first if views else None
    name = function_name(attribute(node) or node.target)
    if name == "getitem" and _selects(node.args[1]):
        return None
    return first if name in _VIEWS or is_idle_dropout(node) else None


def _selects(index: Any) -> bool:
    """Whether an index picks elements (by a list, or a tensor), which copies them."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, (list, fx.Node, Tensor)) for part in parts)


class Memory:
    """Which values of a graph share memory."""

    def __init__(self) -> None:
        self._sources: dict[fx.Node, fx.Node] = {}
        self._families: dict[fx.Node, list[fx.Node]] = {}

    def share(self, node: fx.Node, source: fx.Node) -> None:
        """From now on a node is seen through another."""
        if node is not source and node not in self._sources:
            self._sources[node] = source
            root = [*self._path(node)][-1]
            self._families.setdefault(root, [root]).append(node)

    def touched(self, node: fx.Node) -> list[fx.Node]:
        """All values that a change of one changes."""
        root = [*self._path(node)][-1]
        return [other for other in self._families.get(root, [root]) if not self._apart(node, other)]

    def _path(self, node: fx.Node) -> Iterator[fx.Node]:
        while True:
            yield node
            if node not in self._sources:
                return
            node = self._sources[node]

    def _apart(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether two views are of different parts of what they are views of."""
        left, right = [*self._path(one)][::-1], [*self._path(other)][::-1]
        for a, b in zip(left, right, strict=False):
            if a is not b:
                return _different_parts(a, b)
        return False


def _different_parts(a: fx.Node, b: fx.Node) -> bool:
    if not a.target is b.target is operator.getitem or a.args[0] is not b.args[0]:
        return False
    source, left, right = a.args[0], a.args[1], b.args[1]
    if isinstance(source, fx.Node) and function_name(source.target) in _PARTS:
        return isinstance(left, int) and isinstance(right, int) and left != right
    pairs = zip(*(i if isinstance(i, tuple) else (i,) for i in (left, right)), strict=False)
    for i, j in pairs:
        if i is Ellipsis or j is Ellipsis or i is None or j is None:
            return False
        one, other = _bounds(i), _bounds(j)
        if one and other and (one[1] <= other[0] or other[1] <= one[0]):
            return True
    return False


def _bounds(index: Any) -> tuple[float, float] | None:
    """First and last place of an index, where it tells them without the size."""
    if isinstance(index, int) and index >= 0:
        return index, index + 1
    if isinstance(index, slice):
        start, stop = index.start or 0, float("inf") if index.stop is None else index.stop
        numbers = isinstance(start, int) and isinstance(stop, (int, float))
        return (start, stop) if numbers and start >= 0 and stop >= 0 else None
    return None
