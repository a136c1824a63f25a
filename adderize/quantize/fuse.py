"""Each adder together with what its kernel's epilogue takes over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx, nn
from torch.fx import Node

from adderize.dataflow.graphs import module_of, operation
from adderize.layers import Adder, AdderConv2d
from adderize.quantize.calls import addend, adder_of, carriers, clamp_bounds, is_foldable


@dataclass(eq=False)
class Fusion:
    """An adder, then batch norms, then one addition, then activations: one layer on bytes.

    Attributes:
        layer, name: the adder and its qualified name.
        nodes: in a traced network the adder's call and the nodes behind it that become part of it.
        norms: the adder's own norm and those behind it.
        residual: the other operand of the addition.
        low, high: what the activations clamp to.
        fused: what the epilogue does, by the names of layers and functions.
        filter_bits: of the filters; None for those of the input.
    """

    layer: Adder
    name: str
    nodes: list[Node] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    residual: Node | None = None
    low: float = -math.inf
    high: float = math.inf
    fused: list[str] = field(default_factory=list)
    filter_bits: int | None = None

    def __post_init__(self) -> None:
        self.filter_bits = getattr(self.layer, "filter_bits", None)
        if self.layer.norm is not None:
            self.norms.append(self.layer.norm)
            self.fused.append(type(self.layer.norm).__name__)

    @property
    def call(self) -> Node:
        return self.nodes[0]

    @property
    def target(self) -> str:
        """The name that the layer is called by now: another one where it has several forms."""
        return str(self.call.target) if self.nodes else self.name

    @property
    def end(self) -> Node:
        """The node whose value the layer on bytes gives."""
        return self.nodes[-1]

    @property
    def input(self) -> Node:
        source = self.call.args[0] if self.call.args else self.call.kwargs["input"]
        assert isinstance(source, Node)
        return source

    def absorb(self, node: Node, values: set[Node]) -> bool:
        """Take the node behind the end in, if it fits behind what there is."""
        module, bounds = module_of(node), clamp_bounds(node)
        is_open = self.residual is None and (self.low, self.high) == (-math.inf, math.inf)
        if is_open and module is not None and is_foldable(module):
            self.norms.append(module)
        elif is_open and (other := addend(node, self.end)) in values:
            self.residual = other
        elif bounds and bounds[0] <= bounds[1] and node.args[:1] == (self.end,):
            low, high = bounds
            self.low = min(max(self.low, low), high)
            self.high = min(max(self.high, low), high)
        else:
            return False
        self.nodes.append(node)
        self.fused.append(operation(node))
        return True


def fuse(graph: fx.Graph, may_absorb: Callable[[Fusion, Node], bool]) -> list[Fusion]:
    """The adder calls in order, each with what follows it as far as `may_absorb` allows."""
    values = carriers(graph)
    fusions: list[Fusion] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        layer = adder_of(node)
        if layer is None or node not in values or node in taken:
            continue
        fusion = Fusion(layer, str(node.target), [node])
        while len(fusion.end.users) == 1:
            follower = next(iter(fusion.end.users))
            if follower in taken or not may_absorb(fusion, follower):
                break
            if not fusion.absorb(follower, values):
                break
        taken.update(fusion.nodes)
        fusions.append(fusion)
    return fusions


def fits_shapes(fusion: Fusion, node: Node) -> bool:
    """Whether a node may become part of a fusion, by the shapes that the float network noted.

    Operands of an addition have one shape; a batch norm sees channels where the adder has them.
    """
    shape = node.meta.get("shape")
    if operation(node) == "add":
        return all(operand.meta.get("shape") == shape for operand in node.all_input_nodes)
    if shape is not None and is_foldable(module_of(node)):
        return len(shape) == (4 if isinstance(fusion.layer, AdderConv2d) else 2)
    return shape is not None
