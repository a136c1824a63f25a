"""The data flow between the layers of a model, traced without running its arithmetic."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adderize.dataflow.graph import NORMS, Flow, Node, is_leaf
from adderize.dataflow.recording import likely_inputs, record
from adderize.dataflow.symbolic import trace_symbolically

__all__ = ["NORMS", "Flow", "Node", "is_leaf", "trace"]

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def trace(model: nn.Module, example_input: Any = None) -> list[Flow]:
    """Trace a model in training mode and, for what only evaluation runs, in evaluation mode.

    torch.fx where the model traces; otherwise a forward on the meta device with recording hooks,
    on ``example_input`` (a tensor, or a tuple of arguments) or on inputs guessed from the model.
    The model is left as it was.

    Returns:
        the flows, the one in training mode first; empty where nothing worked.
    """
    flows: list[Flow] = []
    for training in (True, False):
        flow = _symbolic_flow(model, training) or _recorded_flow(model, training, example_input)
        if flow is not None:
            flows.append(flow.prune())
        if flows and all(flows[0].calls(module) for module in filter(is_leaf, model.modules())):
            break
    return flows


# A model's own code runs in both on stand-ins for tensors: it may raise anything.


def _symbolic_flow(model: nn.Module, training: bool) -> Flow | None:
    with _undisturbed(model, training), contextlib.suppress(Exception):
        return trace_symbolically(model)
    return None


def _recorded_flow(model: nn.Module, training: bool, example_input: Any) -> Flow | None:
    for inputs in likely_inputs(model, example_input):
        with _undisturbed(model, training), contextlib.suppress(Exception):
            return record(model, inputs)
    return None


@contextlib.contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module in the given mode and without hooks; attributes are put back at the end."""
    saved = []
    for module in model.modules():
        tables = {key: dict(module.__dict__[key]) for key in _TABLES}
        saved.append((module, dict(module.__dict__), tables))
    try:
        for module, *_ in saved:
            module.__dict__.update({table: OrderedDict() for table in _HOOKS}, training=training)
        # What the model's code says about stand-ins for tensors is not for the user.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, attributes, tables in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for key, table in tables.items():
                attributes[key].clear()
                attributes[key].update(table)
