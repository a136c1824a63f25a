"""A quantized network as a program of integers, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.symbolic import is_query
from adderize.errors import AdderizeError
from adderize.integer.affine import affine_of
from adderize.integer.layer_rules import lower_adder, lower_norm, lower_product, lower_to_bytes
from adderize.integer.lowered_values import LoweredValues, Place
from adderize.integer.moves import is_move
from adderize.integer.pooling_rules import lower_max_pool, lower_mean
from adderize.integer.refusal import RefusedError, check_plain
from adderize.integer.tensor_rules import (
    lower_add,
    lower_affine,
    lower_clamp,
    lower_join,
    lower_move,
    lower_pad,
)
from adderize.integer.value import Value
from adderize.ops.bytes import max_pool2d_bytes
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.calls import clamp_bounds, module_of, name_of, operation
from adderize.quantize.memory_formats import in_format_of
from adderize.quantize.qparams import dequantize_bytes, quantize_bytes

Rule = Callable[[LoweredValues, Node], None]


class Lowering(LoweredValues):
    """One lowering of a quantized graph.

    Args:
        graph: of a network from :func:`adderize.quantize.quantize`, each node with its shape or
            result for two images in ``meta``.
        input_size: (C, H, W).
        image: what the raw bytes of the image stand for.
        kept_inputs: see :class:`LoweredValues`.
        terms, filter_terms: powers of two of a scale, and of a kept layer's weight.

    Attributes:
        output, output_slot: what the network's integers stand for, and where they are.
        refused: operations without a form in integers, and why.
    """

    output: Value
    output_slot: int

    def __init__(
        self,
        graph: fx.Graph,
        input_size: Sequence[int],
        image: Value,
        kept_inputs: Mapping[str, tuple[float, float]],
        *,
        terms: int,
        filter_terms: int,
    ) -> None:
        super().__init__(input_size, kept_inputs, terms=terms, filter_terms=filter_terms)
        self.refused: list[str] = []
        self._behind: set[Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                self.put(node, Place(0), image)
            elif is_query(node):
                continue  # the integers have the sizes of the values that they stand for
            elif any(source in self._behind for source in node.all_input_nodes):
                self._behind.add(node)
            elif node.op == "output":
                self._named(node, self._finish)
            elif any(source in self.values for source in node.all_input_nodes):
                self._named(node, self._lower)

    def _named(self, node: Node, step: Callable[[Node], None]) -> None:
        """Refusals and errors name the node."""
        try:
            step(node)
        except RefusedError as error:
            self.refused.append(f"{name_of(node)}: {error}")
            self._behind.add(node)
        except AdderizeError as error:
            raise AdderizeError(f"{name_of(node)}: {error}") from error

    def _lower(self, node: Node) -> None:
        if (module := module_of(node)) is not None:
            check_plain(module)
        rule = _rule(node)
        if rule is None:
            weighs = operation(node) in ("interpolate", "Upsample")
            advice = ": it weighs neighbours, mode='nearest' would have one" if weighs else ""
            raise RefusedError(f"{operation(node)} has no form in integers{advice}")
        rule(self, node)

    def _finish(self, node: Node) -> None:
        result = node.args[0]
        if not isinstance(result, Node):
            raise RefusedError("the network gives several tensors")
        if result not in self.values or self.values[result].scale.dim():
            raise RefusedError("it does not come from the image, or is the image")
        self.output, self.output_slot = self.values[result], self.slot(result)


def _rule(node: Node) -> Rule | None:
    module = module_of(node)
    if isinstance(module, QuantAdder):
        return lower_adder
    if type(module) in (nn.Conv2d, nn.Linear) or type(module).__name__ == "Conv2dSame":
        return lower_product
    if isinstance(module, _BatchNorm):
        return lower_norm
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target]
    if clamp_bounds(node) is not None:
        return lower_clamp
    if affine_of(node) is not None:
        return lower_affine
    return lower_move if is_move(node) else _OPERATIONS.get(operation(node))


_FUNCTIONS: dict[object, Rule] = {
    quantize_bytes: lower_to_bytes,
    dequantize_bytes: LoweredValues.pass_on,
    in_format_of: LoweredValues.pass_on,
    max_pool2d_bytes: lower_max_pool,
}
_OPERATIONS: dict[str, Rule] = {
    "add": lower_add,
    "cat": lower_join,
    "concat": lower_join,
    "concatenate": lower_join,
    "pad": lower_pad,
    "ConstantPad2d": lower_pad,
    "ZeroPad2d": lower_pad,
    "mean": lower_mean,
    "adaptive_avg_pool2d": lower_mean,
    "AdaptiveAvgPool2d": lower_mean,
    "avg_pool2d": lower_mean,
    "AvgPool2d": lower_mean,
    "max_pool2d": lower_max_pool,
    "MaxPool2d": lower_max_pool,
}
