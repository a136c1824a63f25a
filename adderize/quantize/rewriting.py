"""The integer network: the graph with chains as layers on bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.fx import Node

from adderize.dataflow.symbolic import is_query
from adderize.ops.u8 import max_pool2d_bytes
from adderize.quantize.chains import Chain, norm_affine
from adderize.quantize.flow import ByteFlow, is_max_pool
from adderize.quantize.graph import clamp_bounds, module_of
from adderize.quantize.grid import Grid, dequantize_bytes, quantize_bytes
from adderize.quantize.layers import Epilogue, quantized_layer

# What bytes answer as the floats do that they stand for.
_SIZES = {"device", "dim", "ndim", "numel", "shape", "size"}


class Rewriting:
    """One rewriting of a graph, in place.

    Args:
        traced: the float network.
        flow: its chains and which tensors become bytes.
        grids: the grid of each group of bytes, by the group's name.

    Attributes:
        layers: each chain and the name of its layer in the rewritten network.
    """

    def __init__(self, traced: fx.GraphModule, flow: ByteFlow, grids: Mapping[str, Grid]) -> None:
        self.traced, self.graph, self.flow, self.grids = traced, traced.graph, flow, grids
        self.layers: dict[Chain, str] = {}
        self._bytes: dict[Node, Node] = {}
        self._floats: dict[Node, Node] = {}
        nodes = list(self.graph.nodes)
        for node in nodes:
            self._rewrite(node)
        for node in reversed(nodes):
            skipped = node in flow.inside or clamp_bounds(node) is not None
            if skipped and not node.users:
                self.graph.erase_node(node)
        traced.delete_all_unused_submodules()
        self.graph.lint()
        traced.recompile()

    def grid(self, node: Node) -> Grid:
        return self.grids[self.flow.group(node).name]

    def _rewrite(self, node: Node) -> None:
        if node in self.flow.ends:
            self._insert_layer(node, self.flow.ends[node])
        elif node in self.flow.inside:
            return
        elif node in self.flow.moving:
            node.args, node.kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._any_or_bytes)
            self._bytes[node] = node
            if is_max_pool(node):
                _pool_bytes(node)
        else:
            asked = node.args[1] if node.target is getattr else node.target
            convert = self._any if is_query(node) and asked in _SIZES else self._float
            node.args, node.kwargs = fx.map_arg((node.args, dict(node.kwargs)), convert)

    def _insert_layer(self, end: Node, chain: Chain) -> None:
        to_bytes = self.flow.is_bytes(end)
        gain, offset = norm_affine(chain.layer, chain.norms)
        epilogue = Epilogue(
            gain,
            offset,
            chain.low,
            chain.high,
            self.grid(chain.residual) if chain.residual else None,
            self.grid(end) if to_bytes else None,
        )
        layer = quantized_layer(chain.layer, self.grid(chain.input), epilogue)
        name = self.layers[chain] = self._new_name(chain)
        self.traced.add_submodule(name, layer.eval())
        operands = [chain.input] if chain.residual is None else [chain.input, chain.residual]
        with self.graph.inserting_before(end):
            arguments = tuple(map(self._as_bytes, operands))
            call = self.graph.call_module(name, arguments)
        call.meta.update(end.meta)
        (self._bytes if to_bytes else self._floats)[end] = call

    def _new_name(self, chain: Chain) -> str:
        """The layer's own, or another one where an earlier call of the layer has that."""
        if chain.name not in self.layers.values():
            return chain.name
        taken = {name for name, _ in self.traced.named_modules(remove_duplicate=False)}
        names = (f"{chain.name}_{number}" for number in itertools.count(1))
        return next(name for name in names if name not in taken)

    def _is_made_as_bytes(self, node: Node) -> bool:
        return node in self.flow.ends or node in self.flow.moving

    def _any(self, node: Node) -> Node:
        return self._bytes.get(node) or self._floats.get(node, node)

    def _any_or_bytes(self, node: Node) -> Node:
        return self._as_bytes(node) if self.flow.is_bytes(node) else self._any(node)

    def _as_bytes(self, node: Node) -> Node:
        """The node's values on its grid, put there right after they are made."""
        if node not in self._bytes:
            grid, source = self.grid(node), self._floats.get(node, node)
            bounds = clamp_bounds(source)
            # The grid's own ends do what this activation does.
            if bounds and bounds[0] == grid.low and bounds[1] >= grid.high:
                (source,) = source.all_input_nodes
            with self.graph.inserting_after(node):
                self._bytes[node] = self.graph.call_function(
                    quantize_bytes, (source, grid.scale, grid.zero_point, grid.levels)
                )
        return self._bytes[node]

    def _float(self, node: Node) -> Node:
        if node in self._bytes and node not in self._floats and self._is_made_as_bytes(node):
            grid, made = self.grid(node), self._bytes[node]
            with self.graph.inserting_after(made):
                self._floats[node] = self.graph.call_function(
                    dequantize_bytes, (made, grid.scale, grid.zero_point)
                )
        return self._floats.get(node, node)


def _pool_bytes(node: Node) -> None:
    """Turn a max pooling of floats into one of bytes, in place."""
    module = module_of(node)
    given: dict[str, Any] = dict(zip(_POOLING, node.args[1:], strict=False))
    given.update({name: value for name, value in node.kwargs.items() if name in _POOLING})
    if module is not None:
        given = {name: getattr(module, name) for name in _POOLING}
    kernel = given["kernel_size"]
    stride, padding = given.get("stride") or kernel, given.get("padding", 0)
    dilation, ceil_mode = given.get("dilation", 1), bool(given.get("ceil_mode", False))
    node.op, node.target, node.kwargs = "call_function", max_pool2d_bytes, {}
    node.args = (node.args[0], kernel, stride, padding, dilation, ceil_mode)


_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
