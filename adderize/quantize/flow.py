"""Which tensors of the network are kept as bytes, and which of them share a grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx, nn
from torch.fx import Node

from adderize.dataflow.symbolic import is_query
from adderize.quantize.chains import Chain
from adderize.quantize.graph import carriers, module_of, operation

# They move values without computing any, so they do with bytes what they do with floats.
_MOVING = frozenset({
    "chunk", "contiguous", "flatten", "getitem", "permute", "pixel_shuffle", "pixel_unshuffle",
    "reshape", "split", "squeeze", "transpose", "unsqueeze",
    "ChannelShuffle", "Flatten", "PixelShuffle", "PixelUnshuffle",
})  # fmt: skip
_JOINING = frozenset({"cat", "concat", "concatenate"})
_SEVERAL = frozenset({"chunk", "split"})
_JOINTS = _JOINING | _SEVERAL | {"getitem"}


@dataclass(eq=False)
class ByteGroup:
    """Tensors that hold bytes on one grid.

    Attributes:
        name: of the first tensor.
        read: the tensors whose values something other than a move reads; their range counts.
        with_zero: some reader pads with zeros.
        inputs: an adder reads it: the grid is also that of filters.
    """

    name: str
    read: list[Node] = field(default_factory=list)
    with_zero: bool = False
    inputs: bool = False


class ByteFlow:
    """The groups of byte tensors of a network with its chains found.

    Bytes are what adders and the residual inputs of chains read, and what only moves on its way
    there: max pooling, concatenation, reshaping.

    Args:
        apart: names of nodes that do not move bytes, see :meth:`joints`.

    Attributes:
        ends, inside: the last node, and every node, of each chain.
        moving: the nodes that work on bytes as they do on floats, and are to.
        groups: by the first tensor of each.
    """

    def __init__(self, graph: fx.Graph, chains: list[Chain], apart: Collection[str] = ()) -> None:
        self._apart = apart
        self.ends = {chain.end: chain for chain in chains}
        self.inside = {node: chain for chain in chains for node in chain.nodes}
        self._values = carriers(graph)
        self._parents: dict[Node, Node] = {}
        for node in reversed(graph.nodes):
            if node in self._values and self._wanted(node):
                self._parents[node] = node
        self.moving = {
            node
            for node in self._parents
            if self._sources(node) and self._parents.keys() >= set(self._sources(node))
        }
        for node in self.moving:
            for source in self._sources(node):
                self._join(source, node)
        self.groups = self._describe(graph)

    @property
    def tensors(self) -> list[Node]:
        """Every node that holds bytes."""
        return list(self._parents)

    def is_bytes(self, node: Node) -> bool:
        return node in self._parents

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
        if operation(node) in _SEVERAL:
            return all(user in self._parents and node in self._sources(user) for user in node.users)
        return any(
            self._reads_bytes(user, node) or (user in self._parents and node in self._sources(user))
            for user in node.users
        )

    def _reads_bytes(self, user: Node, node: Node) -> bool:
        chain = self.inside.get(user)
        if chain is None:
            return False
        return node is chain.residual or (user is chain.call and node is chain.input)

    def _sources(self, node: Node) -> list[Node]:
        """The tensors that a moving node moves; none for any other node."""
        if node in self.inside or node.name in self._apart:
            return []
        name = operation(node)
        if name in _JOINING:
            tensors = node.args[0] if node.args else node.kwargs.get("tensors")
            sources = list(tensors) if isinstance(tensors, (list, tuple)) else []
            return sources if self._values.issuperset(sources) else []
        first = node.args[0] if node.args else None
        if name == "getitem" and not _gives_tensor(node):
            return []
        if name in _MOVING or is_max_pool(node):
            return [first] if isinstance(first, Node) and first in self._values else []
        return []

    def _join(self, first: Node, second: Node) -> None:
        first, second = self._root(first), self._root(second)
        self._parents[second] = first

    def _root(self, node: Node) -> Node:
        while self._parents[node] is not node:
            node = self._parents[node]
        return node

    def _describe(self, graph: fx.Graph) -> dict[Node, ByteGroup]:
        groups: dict[Node, ByteGroup] = {}
        for node in graph.nodes:
            if node not in self._parents:
                continue
            group = groups.setdefault(self._root(node), ByteGroup(node.name))
            readers = [
                user for user in node.users if not is_query(user) and user not in self.moving
            ]
            if readers:
                group.read.append(node)
            for user in readers:
                chain = self.inside.get(user)
                if chain is not None and user is chain.call:
                    group.inputs = True
                    group.with_zero |= pads_with_zeros(chain.layer)
        return groups


def _gives_tensor(node: Node) -> bool:
    """Whether an indexing surely gives a tensor: one of several, or a slice along dimensions."""
    source, index = node.args
    several = isinstance(source, Node) and operation(source) in _SEVERAL
    return isinstance(index, int if several else tuple)


def is_max_pool(node: Node) -> bool:
    """Whether a node is a max pooling over two dimensions that gives no indices."""
    module = module_of(node)
    if module is not None:
        return type(module) is nn.MaxPool2d and not module.return_indices
    return operation(node) == "max_pool2d" and not node.kwargs.get("return_indices")


def pads_with_zeros(layer: nn.Module) -> bool:
    """Whether zeros are among what an adder's filters meet."""
    around = getattr(layer, "_reversed_padding_repeated_twice", [0])
    zeros = getattr(layer, "padding_mode", "zeros") == "zeros"
    return (zeros and any(around)) or type(layer).__name__ == "AdderConv2dSame"
