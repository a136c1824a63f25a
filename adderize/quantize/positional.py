"""Calls whose operands are given by name, as calls with operands by position."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch.fx import Node
from torch.fx.operator_schemas import get_signature_for_torch_op

from adderize.dataflow.graphs import module_of

_OPERANDS = ("input", "other", "tensor", "tensors")


def put_operands_first(graph: fx.Graph) -> None:
    """``cat(tensors=[a, b], dim=1)`` becomes ``cat([a, b], dim=1)``, in place.

    What reads a graph looks for operands by their position; options may have either form.
    """
    for node in graph.nodes:
        given = dict(node.kwargs)
        if given.keys().isdisjoint(_OPERANDS) or not node.op.startswith("call"):
            continue
        args = list(node.args)
        for name in _positional_names(node, given)[len(args) :]:
            if name not in given or name not in _OPERANDS:
                break
            args.append(given.pop(name))
        node.args, node.kwargs = tuple(args), given


def _positional_names(node: Node, given: Collection[str]) -> list[str]:
    """What a call takes by position, in order; nothing where that is not known."""
    called: Any = module_of(node)
    if called is not None:
        called = called.forward
    elif node.op == "call_method":
        called = getattr(torch, str(node.target), None)
    else:
        called = node.target
    try:
        signatures = [inspect.signature(called)]
    except (TypeError, ValueError):  # torch's functions that are not written in Python
        signatures = get_signature_for_torch_op(called) or []
    for signature in signatures:
        if signature.parameters.keys() >= set(given):
            return [
                name
                for name, parameter in signature.parameters.items()
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ]
    return []
