"""A quantized network as integers alone, operation by operation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.symbolic import is_query
from adderize.errors import AdderizeError
from adderize.integer.fixed_point import LIMIT, Bounds, ShiftEpilogue
from adderize.integer.integer_layers import (
    IntegerAdder,
    IntegerMaxPool,
    IntegerProduct,
    IntegerSum,
    distance_bounds,
)
from adderize.integer.refusal import RefusedError
from adderize.integer.rewriting import MOVES, VALUE_BITS, Rewriting
from adderize.integer.value import Value, number
from adderize.layers.shift_add import statistics_of_norm
from adderize.ops.bytes import max_pool2d_bytes
from adderize.quantize.byte_layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.calls import clamp_bounds, module_of, operation
from adderize.quantize.memory_formats import in_format_of
from adderize.quantize.qparams import dequantize_bytes, quantize_bytes


class Lowering(Rewriting):
    """One lowering of a quantized graph, in place.

    Args:
        network: from :func:`adderize.quantize.quantize`, each node with the shape of its value in
            ``meta["shape"]``.
        image: what the raw bytes of the image stand for.
        terms, filter_terms: powers of two of a scale, and of a kept layer's weight.

    Attributes:
        output: what the network's integers stand for.
        refused: operations without a form in integers, and why.
    """

    output: Value

    def __init__(
        self, network: fx.GraphModule, image: Value, *, terms: int, filter_terms: int
    ) -> None:
        super().__init__(network, terms)
        self._filter_terms = filter_terms
        self.refused: list[str] = []
        self._behind: set[Node] = set()
        for node in list(self.graph.nodes):
            if node.op == "placeholder":
                self._values[node] = image
            elif node.op == "output":
                self._finish(node)
            elif is_query(node):
                continue  # the integers have the sizes of the values that they stand for
            elif any(source in self._values for source in node.all_input_nodes):
                self._lower(node)
            elif any(source in self._behind for source in node.all_input_nodes):
                self._behind.add(node)
        if not self.refused:
            self.graph.eliminate_dead_code()
            network.delete_all_unused_submodules()
            self.graph.lint()
            network.recompile()

    def _lower(self, node: Node) -> None:
        if any(source in self._behind for source in node.all_input_nodes):
            self._behind.add(node)
            return
        name = str(node.target) if node.op == "call_module" else node.name
        try:
            rule = self._rule(node)
            if rule is None:
                raise RefusedError(f"{operation(node)} has no form in integers")
            rule(node)
        except RefusedError as error:
            self.refused.append(f"{name}: {error}")
            self._behind.add(node)
        except AdderizeError as error:
            raise AdderizeError(f"{name}: {error}") from error

    def _rule(self, node: Node) -> Callable[[Node], None] | None:
        module = module_of(node)
        if isinstance(module, (QuantAdderConv2d, QuantAdderLinear)):
            return self._adder
        if type(module) in (nn.Conv2d, nn.Linear) or type(module).__name__ == "Conv2dSame":
            return self._product
        if isinstance(module, _BatchNorm):
            return self._norm
        if node.target is quantize_bytes:
            return self._to_bytes
        if node.target in (dequantize_bytes, in_format_of):
            return self._pass_on
        if node.target is max_pool2d_bytes:
            return self._move
        if clamp_bounds(node) is not None:
            return self._clamp
        name = operation(node)
        if name in MOVES:
            return self._move
        return {
            "add": self._add, "cat": self._join, "concat": self._join, "concatenate": self._join,
            "pad": self._pad, "mean": self._mean, "adaptive_avg_pool2d": self._mean,
            "AdaptiveAvgPool2d": self._mean, "avg_pool2d": self._mean, "AvgPool2d": self._mean,
            "max_pool2d": self._max_pool, "MaxPool2d": self._max_pool,
        }.get(name)  # fmt: skip

    def _adder(self, node: Node) -> None:
        layer: Any = module_of(node)
        source, value = self._operand(node)
        if not value.is_bytes:
            raise RefusedError("its input is not bytes")
        operands, other = [source], None
        bounds, output = distance_bounds(layer), layer.output_qparams
        scale, offset = layer.scale.double().cpu(), layer.shift.double().cpu()
        zero = float(output.zero_point) if output else 0.0
        largest = (scale.abs() * bounds.high + offset.abs()).max()
        if len(node.args) > 1:
            residual, added = self._operand(node, 1)
            operands.append(residual)
            factor = layer.residual_scale
            other = (factor, float(added.zero), added.bounds)
            offset = offset + factor * float(added.zero)
            largest = largest + abs(factor) * float((added.bounds.largest + added.zero.abs()).max())
        if output:
            unit, result = 1.0, Value.of_bytes(output)
            low, high = int(layer.low), int(layer.high)
        else:
            unit = min(float(largest), max(abs(layer.low), abs(layer.high))) / 2**VALUE_BITS or 1.0
            low, high = (_integer(end / unit) for end in (layer.low, layer.high))
            low, high = max(low, -(2**VALUE_BITS) - 1), min(high, 2**VALUE_BITS + 1)
            result = Value(number(unit), number(0.0), Bounds.of(low, high))
        if other:
            other = (other[0] / unit, *other[1:])
        epilogue = ShiftEpilogue(
            scale / unit, (offset - zero) / unit, bounds,
            terms=self._terms, low=low, high=high, zero=int(zero), other=other,
        )  # fmt: skip
        self._call(node, IntegerAdder(layer, epilogue), operands, result)

    def _product(self, node: Node) -> None:
        source, value = self._operand(node)
        base = self._wanted(node) or 1.0
        layer = module_of(node)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        product = IntegerProduct(
            layer, value.scale, value.zero, value.bounds,
            base=base, image=source.meta["shape"][-2:], terms=self._filter_terms,
        )  # fmt: skip
        unit = number(base * 2.0**-product.fraction)
        self._call(node, product, [source], Value(unit, number(0.0), product.bounds))

    def _to_bytes(self, node: Node) -> None:
        source, value = self._operand(node)
        scale, zero_point, levels = (cast(float, argument) for argument in node.args[1:])
        result = Value(number(scale), number(zero_point), Bounds.of(0, int(levels)), True)
        if value.is_bytes and value.scale.equal(result.scale) and value.zero.equal(result.zero):
            return self._pass_on(node)
        dim = -3 if value.scale.dim() else 1
        self._call(node, self._rescaled(value, result, dim=dim), [source], result)

    def _norm(self, node: Node) -> None:
        source, value = self._operand(node)
        norm = module_of(node)
        assert isinstance(norm, _BatchNorm)
        if norm.running_mean is None:
            raise RefusedError("it divides by statistics of its input")
        gain, mean, beta = statistics_of_norm(norm)
        offset = beta - mean * gain
        result = self._free(node, float((gain.abs() * value.real + offset.abs()).max()))
        self._call(node, self._rescaled(value, result, gain, offset), [source], result)

    def _add(self, node: Node) -> None:
        if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
            raise RefusedError("it scales what it adds")
        if not all(isinstance(operand, Node) for operand in node.args):
            return self._add_number(node)
        (first, a), (second, b) = self._operand(node), self._operand(node, 1)
        if a.scale.dim() or b.scale.dim() or first.meta["shape"] != second.meta["shape"]:
            raise RefusedError("it adds tensors of two shapes, or to the image")
        result = self._free(node, a.real + b.real)
        self._call(node, self._rescaled(a, result, added=b), [first, second], result)

    def _add_number(self, node: Node) -> None:
        addend = next(operand for operand in node.args if not isinstance(operand, Node))
        (source,) = node.all_input_nodes
        value = self._values[source]
        if not isinstance(addend, (int, float)) or value.scale.dim():
            raise RefusedError("it adds something else than a number")
        # The same integers with another zero.
        with self.graph.inserting_before(node):
            call = self.graph.call_function(operator.pos, (source,))
        call.meta["shape"] = node.meta["shape"]
        zero = value.zero - addend / value.scale
        self._values[call] = Value(value.scale, zero, value.bounds, value.is_bytes)
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def _move(self, node: Node) -> None:
        source, value = self._operand(node)
        if any(other in self._values for other in node.all_input_nodes if other is not source):
            raise RefusedError("it moves values to places that the image decides")
        if value.scale.dim() and operation(node) in MOVES:
            raise RefusedError("it moves channels of the image that have several scales")
        self._values[node] = value

    def _clamp(self, node: Node) -> None:
        source, value = self._operand(node)
        ends = clamp_bounds(node)
        assert ends is not None
        if value.scale.dim():
            raise RefusedError("it clamps the image")
        scale, zero = float(value.scale), float(value.zero)
        low, high = (_integer(end / scale + zero) for end in ends)
        low, high = max(low, int(value.bounds.low)), min(high, int(value.bounds.high))
        bounds = Bounds.of(low, max(low, high))
        with self.graph.inserting_before(node):
            call = self.graph.call_function(torch.clamp, (source, low, max(low, high)))
        call.meta["shape"] = node.meta["shape"]
        self._values[call] = Value(value.scale, value.zero, bounds, value.is_bytes)
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def _pad(self, node: Node) -> None:
        source, value = self._operand(node)
        mode = node.kwargs.get("mode", (*node.args[2:3], "constant")[0])
        number = node.kwargs.get("value", (*node.args[3:4], None)[0]) or 0.0
        if mode != "constant" or value.scale.dim() or not isinstance(number, (int, float)):
            raise RefusedError("it pads with something else than a number")
        integer = _integer(number / float(value.scale) + float(value.zero))
        low, high = int(value.bounds.low), int(value.bounds.high)
        is_bytes = value.is_bytes and 0 <= integer <= 255
        if value.is_bytes and not is_bytes:
            with self.graph.inserting_before(node):
                source = self.graph.call_method("to", (source, torch.int32))
        node.args, node.kwargs = (source, node.args[1], "constant", integer), {}
        bounds = Bounds.of(min(low, integer), max(high, integer))
        self._values[node] = Value(value.scale, value.zero, bounds, is_bytes)

    def _mean(self, node: Node) -> None:
        source, value = self._operand(node)
        window, stride, padding = _window_of(node, source.meta["shape"])
        if value.scale.dim():
            raise RefusedError("it averages the image")
        pad = _integer(float(value.zero)) if any(padding) else 0
        layer = IntegerSum(value.bounds, window, stride, padding, pad)
        count, unit = math.prod(window), 2.0**layer.drop
        result = Value(value.scale * unit / count, value.zero / unit * count, layer.bounds)
        shape = node.meta["shape"]
        self._call(node, layer, [source], result)
        if len(shape) == 2:
            self._flatten_last()

    def _max_pool(self, node: Node) -> None:
        source, value = self._operand(node)
        module = module_of(node)
        pool = module if isinstance(module, nn.MaxPool2d) else _max_pool_of(node)
        if pool.return_indices:
            raise RefusedError("it gives indices")
        self._call(node, IntegerMaxPool(pool), [source], value)

    def _join(self, node: Node) -> None:
        tensors: Any = node.args[0]
        if any(tensor not in self._values for tensor in tensors):
            raise RefusedError("it joins a tensor that does not come from the image")
        values = [self._values[tensor] for tensor in tensors]
        if any(value.scale.dim() for value in values):
            raise RefusedError("it joins the image")
        first = values[0]
        if any((v.scale, v.zero) != (first.scale, first.zero) for v in values):
            first = self._free(node, max(value.real for value in values))
            names = [f"{node.name}_{position}" for position in range(len(tensors))]
            parts = zip(names, tensors, strict=True)
            joined = [self._matched(*part, first, node) for part in parts]
            node.args = (joined, *node.args[1:])
            values = [first]
        bounds = Bounds(
            torch.stack([value.bounds.low for value in values]).min(),
            torch.stack([value.bounds.high for value in values]).max(),
        )
        is_bytes = all(value.is_bytes for value in values)
        self._values[node] = Value(first.scale, first.zero, bounds, is_bytes)

    def _finish(self, node: Node) -> None:
        result = node.args[0]
        if not isinstance(result, Node):
            self.refused.append("output: the network gives several tensors")
        elif result in self._values and not self._values[result].scale.dim():
            self.output = self._values[result]
        elif result not in self._behind:
            self.refused.append("output: it does not come from the image, or is the image")


def _integer(value: float) -> int:
    """The nearest integer; of infinities the ends of 32 bits."""
    return round(max(min(value, float(LIMIT)), -float(LIMIT)))


def _window_of(
    node: Node, image: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Window, stride and padding of a mean over an image of this shape."""
    module, name = module_of(node), operation(node)
    height, width = image[-2:]
    if name == "mean":
        dims = node.kwargs.get("dim", (*node.args[1:2], None)[0])
        wanted = sorted(d % len(image) for d in dims) if isinstance(dims, (list, tuple)) else None
        if len(image) != 4 or wanted != [2, 3]:
            raise RefusedError("it averages over other dimensions than height and width")
        return (height, width), (1, 1), (0, 0)
    if name in ("AdaptiveAvgPool2d", "adaptive_avg_pool2d"):
        size: Any = module.output_size if module is not None else node.args[1]
        rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
        rows, columns = rows or height, columns or width
        if height % rows or width % columns:
            raise RefusedError("its windows have several sizes")
        window = (height // rows, width // columns)
        return window, window, (0, 0)
    pool: Any = module if module is not None else nn.AvgPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    padding = _pair(pool.padding)
    if pool.ceil_mode or pool.divisor_override or (any(padding) and not pool.count_include_pad):
        raise RefusedError("its windows have several sizes, or a divisor of their own")
    return _pair(pool.kernel_size), _pair(pool.stride), padding


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, (list, tuple)) else (value, value)


def _max_pool_of(node: Node) -> nn.MaxPool2d:
    given = {key: value for key, value in node.kwargs.items() if key != "input"}
    return nn.MaxPool2d(*node.args[1:], **given)  # type: ignore[arg-type]
