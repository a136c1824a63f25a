"""The data flow between the layers of a model, traced without running its arithmetic."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adderize.dataflow.answers import EndlessError
from adderize.dataflow.inputs import blank_input, likely_inputs
from adderize.dataflow.nodes import NORMS, ONE_AT_A_TIME, Flow, Node, flow_of, is_leaf
from adderize.dataflow.recording import record
from adderize.dataflow.symbolic import trace_symbolically
from adderize.dataflow.undisturbed import undisturbed
from adderize.errors import AdderizeError, classed

__all__ = [
    "NORMS",
    "Flow",
    "Node",
    "blank_input",
    "flow_of",
    "is_leaf",
    "trace",
    "undisturbed",
]

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
    leaves = [module for module in model.modules() if is_leaf(module)]
    with ONE_AT_A_TIME, undisturbed(model) as put_back:
        runs = _Runs(model, example_input, put_back, failures)
        for training in (True, False):
            flow = runs.symbolic(training) or runs.recorded(training)
            if flow is not None:
                flows.append(flow.prune())
            if flows and all(flows[0].calls(module) for module in leaves):
                break
    if not flows and example_input is not None:
        error = failures[-1]
        raise AdderizeError(
            f"the model fails on the given example_input ({classed(error)}); expected a tensor, or "
            "a tuple of the arguments of its forward"
        ) from error
    return flows


@dataclass(frozen=True)
class _Runs:
    """A model's own code runs on stand-ins for tensors: it may raise anything."""

    model: nn.Module
    example_input: Any
    put_back: Callable[[], None]
    failures: list[Exception]

    def symbolic(self, training: bool) -> Flow | None:
        example = self.example_input
        if example is None:
            example = getattr(self.model, "example_input_array", None)
        arguments = len(example) if isinstance(example, tuple) else 1
        with self._quietly(training), contextlib.suppress(Exception):
            return trace_symbolically(self.model, arguments)
        return None

    def recorded(self, training: bool) -> Flow | None:
        for inputs in likely_inputs(self.model, self.example_input):
            # Some forwards make tensors of their own, which then belong on the meta device too.
            for own_tensors in (contextlib.nullcontext(), torch.device("meta")):
                try:
                    with self._quietly(training), own_tensors:
                        return record(self.model, inputs)
                except EndlessError as error:
                    self.failures.append(error)
                    return None
                except Exception as error:
                    self.failures.append(error)
        return None

    @contextlib.contextmanager
    def _quietly(self, training: bool) -> Iterator[None]:
        """Every module in the given mode and without hooks; all is as it was at the end."""
        with torch.no_grad(), warnings.catch_warnings():
            for module in self.model.modules():
                hooks: dict[str, Any] = {table: OrderedDict() for table in _HOOKS}
                module.__dict__.update(hooks, training=training)
            # What the model's code says about stand-ins for tensors is not for the user.
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                self.put_back()
