"""The data flow between the layers of a model, traced without running its arithmetic."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adderize.dataflow.nodes import NORMS, Flow, Node, is_leaf
from adderize.dataflow.recording import likely_inputs, record
from adderize.dataflow.symbolic import trace_symbolically
from adderize.dataflow.undisturbed import undisturbed
from adderize.errors import AdderizeError

__all__ = ["NORMS", "Flow", "Node", "is_leaf", "trace", "undisturbed"]

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def trace(model: nn.Module, example_input: Any = None) -> list[Flow]:
    """Trace a model in training mode and, for what only evaluation runs, in evaluation mode.

    torch.fx where the model traces; otherwise a forward on the meta device with recording hooks,
    on ``example_input`` (a tensor, or a tuple of arguments) or on inputs guessed from the model.
    The model and the states of the random generators are left as they were, also where it fails.

    Returns:
        the flows, the one in training mode first; empty where nothing worked.

    Raises:
        AdderizeError: the model cannot be traced without an input, and fails on the given one.
    """
    flows: list[Flow] = []
    failures: list[Exception] = []
    for training in (True, False):
        flow = _symbolic_flow(model, training, example_input)
        flow = flow or _recorded_flow(model, training, example_input, failures)
        if flow is not None:
            flows.append(flow.prune())
        if flows and all(flows[0].calls(module) for module in filter(is_leaf, model.modules())):
            break
    if not flows and example_input is not None:
        error = failures[-1]
        words = " ".join(str(error).split())
        raise AdderizeError(
            f"the model fails on the given example_input ({type(error).__name__}: {words}); "
            "expected a tensor, or a tuple of the arguments of its forward"
        ) from error
    return flows


# A model's own code runs in both on stand-ins for tensors: it may raise anything.


def _symbolic_flow(model: nn.Module, training: bool, example_input: Any) -> Flow | None:
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    arguments = len(example_input) if isinstance(example_input, tuple) else 1
    with _quietly(model, training), contextlib.suppress(Exception):
        return trace_symbolically(model, arguments)
    return None


def _recorded_flow(
    model: nn.Module, training: bool, example_input: Any, failures: list[Exception]
) -> Flow | None:
    for inputs in likely_inputs(model, example_input):
        # Some forwards make tensors of their own, which then belong on the meta device too.
        for own_tensors in (contextlib.nullcontext(), torch.device("meta")):
            try:
                with _quietly(model, training), own_tensors:
                    return record(model, inputs)
            except Exception as error:
                failures.append(error)
    return None


@contextlib.contextmanager
def _quietly(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module in the given mode and without hooks; all is as it was at the end."""
    with undisturbed(model), torch.no_grad(), warnings.catch_warnings():
        for module in model.modules():
            module.__dict__.update({table: OrderedDict() for table in _HOOKS}, training=training)
        # What the model's code says about stand-ins for tensors is not for the user.
        warnings.simplefilter("ignore")
        yield
