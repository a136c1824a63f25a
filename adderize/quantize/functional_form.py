"""Changes in place as values of their own."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from adderize.dataflow.graphs import module_of
from adderize.dataflow.in_place import (
    PLAIN_OPERATORS,
    changed_in_place,
    inplace_position,
    overlap,
    thread_changes,
)
from adderize.dataflow.nodes import function_name
from adderize.errors import AdderizeError

_NOT_IN_PLACE = {"bernoulli", "normal", "requires_grad"}  # other functions than with an underscore


def check_changes(traced: fx.GraphModule, inputs: Tensor) -> None:
    """Raise where a change in place reaches further than the graph shows, for a batch."""
    _ChangeChecker(traced).run(inputs.clone())


class _ChangeChecker(fx.Interpreter):
    def run_node(self, n: Node) -> Any:
        before = {(node, leaf): leaf._version for node, leaf in self._tensors()}
        changed = changed_in_place(n)
        known = self.env.get(changed) if changed else None
        value = super().run_node(n)
        for (node, leaf), version in before.items():
            if leaf._version == version or node is changed or not _is_read_after(node, n):
                continue
            if not isinstance(known, Tensor) or overlap(leaf, known):
                raise AdderizeError(f"{n.name} changes {node.name} in place, which is read later")
        return value

    def _tensors(self) -> Iterator[tuple[Node, Tensor]]:
        for node, value in self.env.items():
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor):
                    yield node, leaf


def _is_read_after(node: Node, moment: Node) -> bool:
    return any(user > moment for user in node.users)


def make_functional(traced: fx.GraphModule) -> None:
    """Let what reads a tensor after it was changed in place read the result of the change."""
    for node, changed in thread_changes(traced.graph).items():
        if changed.op == "get_attr" or node.target is operator.setitem:
            raise AdderizeError(f"it changes {changed.target} in place")
        module, position = module_of(node), inplace_position(node)
        if module is not None:
            functional = copy.copy(module)
            functional.inplace = False  # type: ignore[assignment]
            traced.set_submodule(str(node.target), functional)
        elif "out" in node.kwargs:
            node.kwargs = {name: v for name, v in node.kwargs.items() if name != "out"}
        elif "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        elif position is not None and len(node.args) > position:
            node.update_arg(position, False)
        elif (plain := _plain(node)) is not None:
            node.target = plain
        else:
            with traced.graph.inserting_before(node):
                twin = traced.graph.call_method("clone", (changed,))
            node.replace_input_with(changed, twin)


def _plain(node: Node) -> Any:
    """The function or method that does the same without changing anything."""
    if node.target in PLAIN_OPERATORS:
        return PLAIN_OPERATORS[node.target]
    name = function_name(node.target)
    if name in _NOT_IN_PLACE:
        return None
    if node.op == "call_method":
        return name if callable(getattr(Tensor, name, None)) else None
    return getattr(torch, name, None) or getattr(F, name, None)
