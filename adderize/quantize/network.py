"""A whole traced network into integers, and the same again from what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import Node

from adderize.quantize.calibration import ValueRange
from adderize.quantize.chains import Chain, find_chains
from adderize.quantize.flow import ByteFlow
from adderize.quantize.graph import module_of, operation, trace
from adderize.quantize.grid import Grid
from adderize.quantize.layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.rewriting import Rewriting


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

    def plan(self, may_absorb: Callable[[Node], bool]) -> None:
        """Find the chains, and which tensors become bytes."""
        self.chains = find_chains(self.traced.graph, may_absorb)
        self.flow = ByteFlow(self.traced.graph, self.chains)

    def watch_shapes(self, inputs: Tensor) -> Any:
        """Run the float network once to learn the shapes of its tensors; returns its output."""
        return _Watcher(self.traced, _note_shape).run(inputs)

    def observe(self, batches: Iterable[Tensor]) -> dict[str, ValueRange]:
        """The values of each group of tensors that becomes bytes, by the group's name."""
        ranges = {node: ValueRange() for group in self.flow.groups.values() for node in group.read}

        def update(node: Node, value: Any) -> None:
            if node in ranges:
                ranges[node].update(value, node.name)

        watcher = _Watcher(self.traced, update)
        for inputs in batches:
            watcher.run(inputs)
        return {
            group.name: ValueRange.union(ranges[node] for node in group.read)
            for group in self.flow.groups.values()
        }

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


def fits_shapes(node: Node) -> bool:
    """Whether a node, after :meth:`TracedNetwork.watch_shapes`, may be part of a chain.

    Operands of an addition have one shape; a batch norm sees channels where the adder has them.
    """
    shape = node.meta.get("shape")
    operands = [source.meta.get("shape") for source in node.all_input_nodes]
    if operation(node) == "add":
        return all(operand == shape for operand in operands)
    if operation(node) == "BatchNorm1d" and shape is not None and len(shape) != 2:
        return False
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
    if isinstance(value, Tensor):
        node.meta["shape"] = tuple(value.shape)
