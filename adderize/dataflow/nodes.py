"""The calls of a forward pass and who reads whose result."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adderize.layers import AdderLinear

# torch.fx patches nn.Module for the whole process while it traces: of two threads, the second would
# leave the first one's patches in it for good.
ONE_AT_A_TIME = threading.RLock()
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of the module is one node: norms, layers with filters, torch's own modules.

    Not where the instance has a forward of its own, whatever its class.
    """
    if "forward" in vars(module):
        return False
    if isinstance(module, (*NORMS, _ConvNd, nn.Linear, AdderLinear)):
        return True
    own = type(module).__module__.startswith(("torch.nn.", "adderize.layers."))
    return own and not isinstance(module, _CONTAINERS)


@dataclass(eq=False)
class Node:
    """One call of a module or a function.

    Attributes:
        name: the function's name, the module's class name, ``"input"`` or ``"output"``.
        position: in the order of execution.
        module: the called module, None for functions.
        constants: the arguments that are not tensors.
        parameters: those that a function is given, or what is computed from them.
        sources: the calls whose results are read, users: those that read this one's.
    """

    name: str
    position: int
    module: nn.Module | None = None
    constants: Sequence[Any] = ()
    parameters: Collection[nn.Parameter] = ()
    sources: list[Node] = field(default_factory=list)
    users: list[Node] = field(default_factory=list)


class Flow:
    """Calls in order of execution; ``method`` says how they were found: "fx" or "hooks"."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.nodes: list[Node] = []
        self._calls: dict[nn.Module, list[Node]] = {}

    @property
    def called(self) -> set[nn.Module]:
        """Every module that was called, also those whose result reaches no output."""
        return set(self._calls)

    def add(
        self,
        name: str,
        sources: Iterable[Node] = (),
        module: nn.Module | None = None,
        constants: Sequence[Any] = (),
        parameters: Collection[nn.Parameter] = (),
    ) -> Node:
        inputs = list(dict.fromkeys(sources))
        node = Node(name, len(self.nodes), module, constants, parameters, inputs)
        for source in node.sources:
            source.users.append(node)
        self.nodes.append(node)
        if module is not None:
            self._calls.setdefault(module, []).append(node)
        return node

    def end(self, results: Iterable[Node] = ()) -> None:
        """Close the flow; where the results are unknown, whatever nobody reads is one."""
        self.add("output", list(results) or [node for node in self.nodes if not node.users])

    def calls(self, module: nn.Module) -> list[Node]:
        return self._calls.get(module, [])

    def prune(self) -> Flow:
        """Leave out what never reaches the output: checks, sizes, unused chunks."""
        alive = {node for node in self.nodes if node.name == "output"}
        for node in reversed(self.nodes):
            if not alive.isdisjoint(node.users):
                alive.add(node)
        for node in alive:
            node.users = [user for user in node.users if user in alive]
        self.nodes = [node for node in self.nodes if node in alive]
        for module, calls in list(self._calls.items()):
            self._calls[module] = [call for call in calls if call in alive]
        return self


def flow_of(flows: Iterable[Flow], module: nn.Module) -> Flow | None:
    """The first flow that calls a module."""
    return next((flow for flow in flows if flow.calls(module)), None)


def function_name(target: Any) -> str:
    name: str = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_")
