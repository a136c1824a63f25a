"""Each adder call together with what its kernel's epilogue takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.layers import AdderConv2d, AdderLinear
from adderize.quantize.graph import (
    adder_of,
    carriers,
    clamp_bounds,
    is_foldable,
    module_of,
    operation,
)


@dataclass(eq=False)
class Chain:
    """An adder call, then batch norms, then one addition, then activations.

    Attributes:
        layer, name: the adder and its qualified name.
        call: the adder's node.
        absorbed: the nodes behind it that become part of it, in order.
        residual: the other operand of the addition.
        low, high: what the activations clamp to.
    """

    layer: AdderConv2d | AdderLinear
    name: str
    call: Node
    absorbed: list[Node] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    residual: Node | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def input(self) -> Node:
        source = self.call.args[0] if self.call.args else self.call.kwargs["input"]
        assert isinstance(source, Node)
        return source

    @property
    def end(self) -> Node:
        """The node whose value the quantised layer gives."""
        return self.absorbed[-1] if self.absorbed else self.call

    @property
    def fused(self) -> tuple[str, ...]:
        """What the epilogue does, by the names of layers and functions."""
        own = [] if self.layer.norm is None else [type(self.layer.norm).__name__]
        return (*own, *map(operation, self.absorbed))

    @property
    def nodes(self) -> list[Node]:
        return [self.call, *self.absorbed]


def find_chains(graph: fx.Graph, may_absorb: Callable[[Chain, Node], bool]) -> list[Chain]:
    """The adder calls in order, each with what follows it as far as `may_absorb` allows."""
    values = carriers(graph)
    chains: list[Chain] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        layer = adder_of(node)
        if layer is None or node not in values or node in taken:
            continue
        chain = Chain(layer, str(node.target), node)
        if layer.norm is not None:
            chain.norms.append(layer.norm)
        while len(chain.end.users) == 1:
            follower = next(iter(chain.end.users))
            if (
                follower in taken
                or not may_absorb(chain, follower)
                or not _absorb(chain, follower, values)
            ):
                break
            chain.absorbed.append(follower)
        taken.update(chain.nodes)
        chains.append(chain)
    return chains


def _absorb(chain: Chain, node: Node, values: set[Node]) -> bool:
    """Take a node into the chain, if it fits behind what the chain holds."""
    module = module_of(node)
    active = (chain.low, chain.high) != (-math.inf, math.inf)
    if is_foldable(module) and chain.residual is None and not active:
        assert module is not None
        chain.norms.append(module)
        return True
    other = addend(node, chain.end)
    if other in values and chain.residual is None and not active:
        chain.residual = other
        return True
    bounds = clamp_bounds(node)
    if bounds is None or node.args[:1] != (chain.end,):
        return False
    low, high = bounds
    if not low <= high:
        return False
    chain.low = min(max(chain.low, low), high)
    chain.high = min(max(chain.high, low), high)
    return True


def addend(node: Node, operand: Node) -> Node | None:
    """What a plain addition of two tensors adds to an operand; None for any other node."""
    if operation(node) != "add" or node.kwargs or len(node.args) != 2:
        return None
    others = [argument for argument in node.args if argument is not operand]
    return others[0] if len(others) == 1 and isinstance(others[0], Node) else None


def norm_affine(
    layer: AdderConv2d | AdderLinear, norms: Iterable[nn.Module]
) -> tuple[Tensor, Tensor]:
    """gain and offset of a layer's batch norms, float64 (Cout,): ``gain * y + offset``."""
    filters = layer.weight
    gain = torch.ones(len(filters), dtype=torch.float64, device=filters.device)
    offset = torch.zeros_like(gain)
    for norm in norms:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.detach().double()
        gain, offset = gain * factor, (offset - norm.running_mean.double()) * factor
        if norm.bias is not None:
            offset = offset + norm.bias.detach().double()
    return gain, offset
