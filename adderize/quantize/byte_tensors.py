"""Which tensors of a network are kept as bytes, and which of them share their parameters."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx
from torch.fx import Node

from adderize.dataflow.graphs import is_query, module_of, operation
from adderize.layers import pads_with_zeros
from adderize.quantize.calls import (
    JOINS,
    MOVES,
    carriers,
    is_plain,
    is_repetition,
    max_pool_of,
)
from adderize.quantize.fuse import Fusion

_SEVERAL = frozenset({"chunk", "split"})
_JOINTS = JOINS | _SEVERAL | {"getitem"}


@dataclass(eq=False)
class ByteGroup:
    """Tensors that hold bytes with one scale and zero point.

    Attributes:
        name: of the first tensor.
        read: the tensors whose values something other than a move reads; their range counts.
        with_zero: some reader pads with zeros.
        inputs: an adder reads it: its filters have these parameters, too.
    """

    name: str
    read: list[Hashable] = field(default_factory=list)
    with_zero: bool = False
    inputs: bool = False


class ByteTensors:
    """The tensors of a fused network that hold bytes.

    Bytes are what adders and the residual inputs of fusions read, and what only moves on its way
    there: max pooling, nearest upsampling, concatenation, reshaping.

    Args:
        apart: names of nodes that do not move bytes, see :meth:`joints`.

    Attributes:
        ends, inside: the last node, and every node, of each fusion.
        moving: the nodes that work on bytes as they do on floats, and are to.
        groups: by the first tensor of each.
    """

    def __init__(
        self, graph: fx.Graph, fusions: Sequence[Fusion], apart: Collection[str] = ()
    ) -> None:
        self._apart = apart
        self.ends = {fusion.end: fusion for fusion in fusions}
        self.inside = {node: fusion for fusion in fusions for node in fusion.nodes}
        self._values = carriers(graph)
        self._parents: dict[Node, Node] = {}
        for node in reversed(graph.nodes):
            if node in self._values and self._wanted(node):
                self._parents[node] = node
        self.moving = {
            node
            for node in self._parents
            if (sources := self._sources(node)) and self._parents.keys() >= set(sources)
        }
        for node in self.moving:
            for source in self._sources(node):
                self._parents[self._root(node)] = self._root(source)
        self.groups = self._describe(graph)

    def __contains__(self, node: object) -> bool:
        return node in self._parents

    def __iter__(self) -> Iterator[Node]:
        return iter(self._parents)

    def group(self, node: Node) -> ByteGroup:
        return self.groups[self._root(node)]

    def joints(self, group: ByteGroup) -> set[str]:
        """The names of the nodes that put tensors of a group together or take them apart."""
        return {
            node.name
            for node in self.moving
            if operation(node) in _JOINTS and self.group(node) is group
        }

    def _wanted(self, node: Node) -> bool:
        """Whether something reads the node as bytes; its users have been looked at."""
        if node in self.inside and node not in self.ends:
            return False
        moved = [user in self._parents and node in self._sources(user) for user in node.users]
        if operation(node) in _SEVERAL:
            return all(moved)
        return any(moved) or any(self._reads_bytes(user, node) for user in node.users)

    def byte_readers(self, node: Node) -> list[Node]:
        """The users of a tensor that read its bytes."""
        return [user for user in node.users if user in self.moving or self._reads_bytes(user, node)]

    def _reads_bytes(self, user: Node, node: Node) -> bool:
        fusion = self.inside.get(user)
        if fusion is None:
            return False
        return node is fusion.residual or (user is fusion.call and node is fusion.input)

    def _sources(self, node: Node) -> list[Node]:
        """The tensors that a moving node moves; none for any other node."""
        if node in self.inside or node.name in self._apart or not is_plain(module_of(node)):
            return []
        name = operation(node)
        if name in JOINS:
            tensors = node.args[0] if node.args else node.kwargs.get("tensors")
            sources = list(tensors) if isinstance(tensors, (list, tuple)) else []
            return sources if self._values.issuperset(sources) else []
        if name == "getitem" and not _gives_tensor(node):
            return []
        first = node.args[0] if node.args else None
        moves = name in MOVES or max_pool_of(node) is not None or is_repetition(node)
        return [first] if moves and isinstance(first, Node) and first in self._values else []

    def _root(self, node: Node) -> Node:
        while self._parents[node] is not node:
            node = self._parents[node]
        return node

    def _describe(self, graph: fx.Graph) -> dict[Node, ByteGroup]:
        groups: dict[Node, ByteGroup] = {}
        for node in graph.nodes:
            if node not in self:
                continue
            group = groups.setdefault(self._root(node), ByteGroup(node.name))
            readers = [
                user for user in node.users if not is_query(user) and user not in self.moving
            ]
            if readers:
                group.read.append(node)
            for user in readers:
                fusion = self.inside.get(user)
                if fusion is not None and user is fusion.call:
                    group.inputs = True
                    group.with_zero |= pads_with_zeros(fusion.layer)
        return groups


def _gives_tensor(node: Node) -> bool:
    """Whether an indexing surely gives a tensor: one of several, or a slice along dimensions."""
    source, index = node.args
    several = isinstance(source, Node) and operation(source) in _SEVERAL
    return isinstance(index, int if several else tuple)
