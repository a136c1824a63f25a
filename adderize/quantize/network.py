"""A whole traced network into integers, and the same again from what was saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from adderize.layers import AdderLinear
from adderize.quantize.calibration import ValueRange, named_failures
from adderize.quantize.chains import Chain, find_chains
from adderize.quantize.flow import ByteFlow
from adderize.quantize.graph import is_foldable, module_of, operation, trace
from adderize.quantize.grid import Grid
from adderize.quantize.layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.rewriting import Rewriting

_UNLIKE = 8


class TracedNetwork:
    """A float network as a graph, ready to be calibrated and rewritten.

    Args:
        model: in evaluation mode; its modules are used, not copied.

    Raises:
        Exception: whatever tracing the model raises.
    """

    def __init__(self, model: nn.Module) -> None:
        self.traced = trace(model)
        self.chains: list[Chain] = []
        self.flow = ByteFlow(self.traced.graph, [])

    def plan(self, may_absorb: Callable[[Chain, Node], bool], apart: Collection[str] = ()) -> None:
        """Find the chains, and which tensors become bytes; see :meth:`part` for `apart`."""
        self.chains = find_chains(self.traced.graph, may_absorb)
        self.flow = ByteFlow(self.traced.graph, self.chains, apart)

    def part(self, ranges: Mapping[Node, ValueRange]) -> list[str]:
        """Give tensors of unlike ranges grids of their own; what then works on floats, by name.

        On one grid with a tensor that is eight times as wide the other one would keep 5 bits.
        """
        apart: set[str] = set()
        for group in self.flow.groups.values():
            seen = [ranges[node] for node in group.read]
            whole = ValueRange.union(seen).width(group.with_zero)
            alive = [part for part in seen if (part.low, part.high) != (0, 0)]
            if any(_UNLIKE * part.width(group.with_zero) < whole for part in alive):
                apart |= self.flow.joints(group)
        if apart:
            self.flow = ByteFlow(self.traced.graph, self.chains, apart)
        return sorted(apart)

    def watch_shapes(self, inputs: Tensor) -> Any:
        """Run the float network once to learn its float32 tensors' shapes; returns its output."""
        return _Watcher(self.traced, _note_shape).run(inputs)

    def observe(self, batches: Iterable[Tensor]) -> dict[Node, ValueRange]:
        """The values of each tensor that may become bytes."""
        ranges = {node: ValueRange() for node in self.flow.tensors}

        def update(node: Node, value: Any) -> None:
            if node in ranges and isinstance(value, Tensor):
                ranges[node].update(value, node.name)

        watcher = _Watcher(self.traced, update)
        for inputs in batches:
            with named_failures(f"a calibration batch of shape {tuple(inputs.shape)}"):
                watcher.run(inputs)
        return ranges

    def chain_outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each chain of the float network gives, by the names of the adders' nodes."""
        names = {chain.end: chain.call.name for chain in self.chains}
        found: dict[str, Tensor] = {}

        def keep(node: Node, value: Any) -> None:
            if node in names:
                found[names[node]] = value

        _Watcher(self.traced, keep).run(inputs)
        return found

    def absorbed(self) -> dict[str, list[str]]:
        """What each adder call took in, by the names of the nodes."""
        return {chain.call.name: [node.name for node in chain.absorbed] for chain in self.chains}

    def rewrite(self, grids: Mapping[str, Grid]) -> dict[Chain, str]:
        """Put the chains into integers, in place; returns their layers' names."""
        return Rewriting(self.traced, self.flow, grids).layers

    def layer_outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each layer of the rewritten network gives, by the layers' names."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, value: Any) -> None:
            if isinstance(module_of(node), (QuantAdderConv2d, QuantAdderLinear)):
                found[str(node.target)] = value

        _Watcher(self.traced, keep).run(inputs)
        return found


def fits_shapes(chain: Chain, node: Node) -> bool:
    """Whether a node, after :meth:`TracedNetwork.watch_shapes`, may become part of a chain.

    Operands of an addition have one shape; a batch norm sees channels where the adder has them.
    """
    shape = node.meta.get("shape")
    operands = [source.meta.get("shape") for source in node.all_input_nodes]
    if operation(node) == "add":
        return all(operand == shape for operand in operands)
    if shape is not None and is_foldable(module_of(node)):
        return len(shape) == (2 if isinstance(chain.layer, AdderLinear) else 4)
    return shape is not None


class _Watcher(fx.Interpreter):
    """Runs a graph and shows every node's value to a function."""

    def __init__(self, traced: fx.GraphModule, look: Callable[[Node, Any], None]) -> None:
        super().__init__(traced)
        self._look = look

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self._look(n, value)
        return value


def _note_shape(node: Node, value: Any) -> None:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        node.meta["shape"] = tuple(value.shape)
