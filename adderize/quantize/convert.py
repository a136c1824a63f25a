"""The integer network: fusions as layers on bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.graphs import attribute
from adderize.layers import Adder
from adderize.layers.shift_add import statistics_of_norm
from adderize.ops.bytes import max_pool2d_bytes
from adderize.quantize.byte_layers import Epilogue, QuantAdder, quantized_layer
from adderize.quantize.byte_tensors import ByteTensors
from adderize.quantize.calls import clamp_bounds, free_name, max_pool_of, read_layers
from adderize.quantize.constants import distance_variance, taken_for_constant
from adderize.quantize.fake_layers import FakeQuantAdder
from adderize.quantize.fuse import Fusion
from adderize.quantize.qparams import QParams, dequantize_bytes, quantize_bytes

# What bytes answer as the floats do that they stand for.
_SIZES = {"device", "dim", "ndim", "numel", "shape", "size"}


def convert_layer(
    fusion: Fusion,
    input: QParams,
    residual: QParams | None = None,
    output: QParams | None = None,
) -> QuantAdder:
    """A fusion as a layer on bytes, from the parameters of the tensors around it."""
    layer = fusion.layer
    # The statistics of a network that was trained with the rounding know of it.
    rounding = 0.0 if isinstance(layer, FakeQuantAdder) else distance_variance(layer, input)
    gain, offset = norm_affine(layer, fusion.norms, rounding)
    epilogue = Epilogue(gain, offset, fusion.low, fusion.high, residual, output, fusion.filter_bits)
    return quantized_layer(layer, input, epilogue)


def norm_affine(layer: Adder, norms: Iterable[nn.Module], rounding: float) -> tuple[Tensor, Tensor]:
    """gain and offset of a layer's batch norms, float64 (Cout,): ``gain * y + offset``.

    A channel that the first norm takes for constant, its variance below eps and below that of the
    `rounding`, has gain 0. The norm would make 1/sqrt(eps) of the rounding of what did not vary at
    all, as behind dead channels in depthwise layers (Sheng et al., A Quantization-Friendly
    Separable Convolution for MobileNets, 2018).
    """
    filters = layer.weight
    gain = torch.ones(len(filters), dtype=torch.float64, device=filters.device)
    offset = torch.zeros_like(gain)
    for number, norm in enumerate(norms):
        assert isinstance(norm, _BatchNorm)
        factor, mean, beta = statistics_of_norm(norm)
        offset = (offset - mean) * factor
        if number == 0:
            constant = taken_for_constant(norm, rounding)
            factor, offset = factor.masked_fill(constant, 0), offset.masked_fill(constant, 0)
        gain, offset = gain * factor, offset + beta
    return gain, offset


class GraphConversion:
    """The conversion of a traced network, in place.

    Args:
        traced: the float network.
        tensors: its fusions and which of its tensors become bytes.
        qparams: those of each group of byte tensors, by the group's name.

    Attributes:
        calls: the node that calls the layer of each fusion.
    """

    def __init__(
        self, traced: fx.GraphModule, tensors: ByteTensors, qparams: Mapping[str, QParams]
    ) -> None:
        self.traced, self.graph, self._tensors, self._given = traced, traced.graph, tensors, qparams
        self.calls: dict[Fusion, Node] = {}
        self._bytes: dict[Node, Node] = {}
        self._floats: dict[Node, Node] = {}
        nodes = list(self.graph.nodes)
        for node in nodes:
            self._convert(node)
        for node in reversed(nodes):
            skipped = node in tensors.inside or clamp_bounds(node) is not None
            if skipped and not node.users:
                self.graph.erase_node(node)
        traced.delete_all_unused_submodules()
        self.graph.lint()
        traced.recompile()

    def _qparams(self, node: Node) -> QParams:
        return self._given[self._tensors.group(node).name]

    def _convert(self, node: Node) -> None:
        if node in self._tensors.ends:
            self._insert_layer(node, self._tensors.ends[node])
        elif node in self._tensors.inside:
            return
        elif node in self._tensors.moving:
            _read(
                node,
                lambda source: (self._as_bytes if source in self._tensors else self._any)(source),
            )
            self._bytes[node] = node
            if (pool := max_pool_of(node)) is not None:
                _pool_bytes(node, pool)
        else:
            _read(node, self._any if attribute(node) in _SIZES else self._float)

    def _insert_layer(self, end: Node, fusion: Fusion) -> None:
        residual, to_bytes = fusion.residual, end in self._tensors
        layer = convert_layer(
            fusion,
            self._qparams(fusion.input),
            self._qparams(residual) if residual else None,
            self._qparams(end) if to_bytes else None,
        )
        name = self._new_name(fusion)
        self.traced.add_submodule(name, layer)
        operands = [fusion.input] if residual is None else [fusion.input, residual]
        with self.graph.inserting_before(end):
            call = self.graph.call_module(name, tuple(map(self._as_bytes, operands)))
        call.meta.update(end.meta)
        self.calls[fusion] = call
        (self._bytes if to_bytes else self._floats)[end] = call

    def _new_name(self, fusion: Fusion) -> str:
        """The layer's own, or another one where that is taken: by an earlier call of the layer, or
        because the network reads the layer's filters."""
        used = {call.target for call in self.calls.values()} | read_layers(self.graph)
        if fusion.name not in used:
            return fusion.name
        taken = {name for name, _ in self.traced.named_modules(remove_duplicate=False)}
        return free_name(fusion.name, taken)

    def _any(self, node: Node) -> Node:
        return self._bytes.get(node) or self._floats.get(node, node)

    def _as_bytes(self, node: Node) -> Node:
        """The node's values as bytes, made right after the values are."""
        if node not in self._bytes:
            qparams, source = self._qparams(node), self._floats.get(node, node)
            bounds = clamp_bounds(source)
            # The range of the bytes does what this activation does.
            if bounds and bounds[0] == qparams.low and bounds[1] >= qparams.high:
                (source,) = source.all_input_nodes
            with self.graph.inserting_after(node):
                self._bytes[node] = self.graph.call_function(
                    quantize_bytes, (source, qparams.scale, qparams.zero_point, qparams.levels)
                )
        return self._bytes[node]

    def _float(self, node: Node) -> Node:
        is_made_as_bytes = node in self._tensors.ends or node in self._tensors.moving
        if node in self._bytes and node not in self._floats and is_made_as_bytes:
            qparams, made = self._qparams(node), self._bytes[node]
            with self.graph.inserting_after(made):
                self._floats[node] = self.graph.call_function(
                    dequantize_bytes, (made, qparams.scale, qparams.zero_point)
                )
        return self._floats.get(node, node)


def _read(node: Node, form: Callable[[Node], Node]) -> None:
    """Let a node read other forms of what it reads."""
    node.args, node.kwargs = fx.map_arg((node.args, dict(node.kwargs)), form)


def _pool_bytes(node: Node, pool: nn.MaxPool2d) -> None:
    """Turn a max pooling of floats into one of bytes, in place."""
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, bool(pool.ceil_mode))
    node.op, node.target, node.kwargs = "call_function", max_pool2d_bytes, {}
    node.args = (node.args[0], *settings)
