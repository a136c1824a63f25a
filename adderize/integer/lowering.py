"""A quantized network as a program of integers, operation by operation."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.graphs import is_query, module_of, operation
from adderize.errors import AdderizeError, listed, named
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
from adderize.quantize.calls import JOINS, clamp_bounds, name_of
from adderize.quantize.memory_formats import in_format_of
from adderize.quantize.qparams import dequantize_bytes, quantize_bytes

Rule = Callable[[LoweredValues, Node], None]


def lower(graph: fx.Graph, image: Value, values: LoweredValues) -> tuple[int, Value]:
    """Write the program of a quantized graph.

    Args:
        graph: of a network from :func:`adderize.quantize.quantize`, each node with its shape or
            result for two images in ``meta``.
        image: what the raw bytes of the image stand for.
        values: where the program is written.

    Returns:
        the slot of the network's result, and what its integers stand for.

    Raises:
        AdderizeError: operations without a form in integers, each by its name; sums that 32 bits
            do not hold.
    """
    refused: list[str] = []
    behind: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            values.put(node, Place(0), image)
        elif is_query(node):
            continue  # the integers have the sizes of the values that they stand for
        elif not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        elif node.op == "output" or not values.values.keys().isdisjoint(node.all_input_nodes):
            try:
                with named(name_of(node)):
                    _lower(values, node)
            except RefusedError as error:
                refused.append(f"{name_of(node)}: {error}")
                behind.add(node)
    if refused:
        raise AdderizeError(
            f"the network cannot become integers: {listed(refused, '; ')}. Replace such "
            "operations, or compute them on the network's results; the 8-bit network keeps them in "
            "float32"
        )
    (output,) = graph.find_nodes(op="output")
    (result,) = output.all_input_nodes
    return values.slot(result), values.values[result]


def _lower(values: LoweredValues, node: Node) -> None:
    check_plain(module_of(node))
    rule = _rule(node)
    if rule is None:
        weighs = operation(node) in ("interpolate", "Upsample")
        advice = ": it weighs neighbours, mode='nearest' would have one" if weighs else ""
        raise RefusedError(f"{operation(node)} has no form in integers{advice}")
    rule(values, node)


def _give(values: LoweredValues, node: Node) -> None:
    """The network's result is a tensor in a slot of its own."""
    result = node.args[0]
    if not isinstance(result, Node):
        raise RefusedError("the network gives several tensors")
    if result not in values.values or values.values[result].scale.dim():
        raise RefusedError("it does not come from the image, or is the image")
    values.slot(result)


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
    **dict.fromkeys(JOINS, lower_join),
    "add": lower_add,
    "output": _give,
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
