"""Dropout layers of a network that goes on training: out of sight while bytes are planned."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx import Node
from torch.nn.modules.dropout import _DropoutNd

from adderize.dataflow.graphs import module_of
from adderize.quantize.calls import is_plain
from adderize.quantize.fake_layers import FakeQuantize


@dataclass(frozen=True)
class _Dropout:
    """A call that was taken out: its layer's name, and where each reader read it."""

    target: str
    readers: dict[Node, list[int]]


class Dropouts:
    """The dropout layers of a graph, taken out of it until :meth:`put_back`.

    In evaluation they do nothing, so they must not change which tensors become bytes, which of
    these share a scale, and what becomes part of an adder.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced = traced
        self._taken: list[_Dropout] = []
        for node in reversed(traced.graph.nodes):
            module = module_of(node)
            if not isinstance(module, _DropoutNd) or not is_plain(module):
                continue
            places = {
                user: [i for i, read in enumerate(_inputs(user)) if read is node]
                for user in node.users
            }
            self._taken.append(_Dropout(str(node.target), places))
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)

    def put_back(self) -> None:
        """Drop what the readers read now: values that are rounded already, where all do."""
        for taken in reversed(self._taken):
            read = {_inputs(user)[places[0]] for user, places in taken.readers.items()}
            # One mask for those that read bytes and those that read floats.
            floats = [node for node in read if not _is_rounded(node)]
            for source in floats or list(read):
                self._insert(taken, source)
        self._traced.graph.lint()
        self._traced.recompile()

    def _insert(self, taken: _Dropout, source: Node) -> None:
        graph = self._traced.graph
        with graph.inserting_after(source):
            dropped = graph.call_module(taken.target, (source,))
        rounded: dict[Node, Node] = {source: dropped}
        for user, places in taken.readers.items():
            seen = _inputs(user)[places[0]]
            if seen not in rounded:
                with graph.inserting_after(dropped):
                    rounded[seen] = graph.call_module(str(seen.target), (dropped,))
            _replace(user, places, rounded[seen])
            if not seen.users:
                graph.erase_node(seen)


def _is_rounded(node: Node) -> bool:
    return isinstance(module_of(node), FakeQuantize)


def _inputs(node: Node) -> list[Node]:
    """The nodes among a node's arguments, in order, as often as they occur."""
    found: list[Node] = []

    def note(input: Node) -> Node:
        found.append(input)
        return input

    fx.node.map_arg((node.args, node.kwargs), note)
    return found


def _replace(node: Node, places: list[int], new: Node) -> None:
    """Another input at these places of :func:`_inputs`."""
    count = itertools.count()
    changed: Any = fx.node.map_arg(
        (node.args, node.kwargs), lambda input: new if next(count) in places else input
    )
    node.args, node.kwargs = changed
