"""Layers on integers: adders, kept convolutions and linear layers, norms, and the bytes between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.graphs import module_of
from adderize.integer.fitting import Fitted, centre, fit_epilogue, fit_product
from adderize.integer.fixed_point import LIMIT, MOST_FRACTION_BITS, Bounds
from adderize.integer.lowered_values import ADDER_BITS, LoweredValues, Place, unit_for
from adderize.integer.precision import Precision, usual_of
from adderize.integer.program import Setting
from adderize.integer.refusal import RefusedError
from adderize.integer.value import Value, nearest_integer, number
from adderize.layers.base import effective_geometry
from adderize.layers.same import same_padding
from adderize.layers.shift_add import statistics_of_norm
from adderize.ops.geometry import Geometry
from adderize.quantize.byte_layers import QuantAdder, QuantAdderConv2d
from adderize.quantize.calls import is_foldable, name_of
from adderize.quantize.constants import never_vary


def lower_adder(values: LoweredValues, node: Node) -> None:
    layer: Any = module_of(node)
    source, value = values.operand(node)
    if not value.is_bytes:
        raise RefusedError("its input is not bytes")
    inputs, other, added = [values.slot(source)], None, None
    bounds, output = _distance_bounds(layer), layer.output_qparams
    scale, offset = layer.scale.double().cpu(), layer.shift.double().cpu()
    largest = (scale.abs() * bounds.high + offset.abs()).max()
    if len(node.args) > 1:
        residual, added = values.operand(node, 1)
        inputs.append(values.slot(residual))
        factor, zero = layer.residual_scale, float(added.zero)
        offset = offset + factor * zero
        largest = largest + abs(factor) * (float(added.bounds.largest.max()) + abs(zero))
    if output:
        unit, zero_point = 1.0, output.zero_point
        result = Value.of_bytes(number(output.scale), number(zero_point), output.levels)
        low, high = int(layer.low), int(layer.high)
    else:
        result = _sums_of_adder(layer, float(largest), added)
        unit, zero_point = float(result.scale), 0
        low, high = map(int, result.bounds)
    if added is not None:
        other = (factor / unit, zero, added.bounds)
    fitted = fit_epilogue(
        scale / unit, (offset - zero_point) / unit, bounds,
        terms=values.terms, low=low, high=high, zero=zero_point,
        about=centre(zero_point, Bounds.of(low, high)), other=other,
    )  # fmt: skip
    is_conv = isinstance(layer, QuantAdderConv2d)
    kind, weight = ("adder_conv" if is_conv else "adder_linear"), layer.weight.cpu()
    fitted.tensors["weight"] = weight if is_conv else weight.flatten(1)
    geometry = _geometry(layer, source.meta["shape"]) if is_conv else {}
    values.emit(node, kind, inputs, result, {"levels": layer.qparams.levels, **geometry}, fitted)


def _sums_of_adder(layer: Any, largest: float, added: Value | None) -> Value:
    """Integers of 32 bits for the results of an adder that no bytes follow."""
    scale = layer.scale.double().cpu()
    real = min(largest, max(abs(layer.low), abs(layer.high)))
    unit = unit_for(real, float(scale.abs().max()), ADDER_BITS)
    most = math.ceil(real / unit) + 1
    low = max(nearest_integer(layer.low / unit), -most)
    high = min(nearest_integer(layer.high / unit), most)
    precision = _precision_of_adder(layer, scale, added).rounded(unit)
    precision = precision.rectified() if low >= 0 else precision
    precision = precision.within(unit * (high - low))
    return Value(number(unit), number(0.0), Bounds.of(low, high), precision)


def _precision_of_adder(layer: QuantAdder, scale: Tensor, added: Value | None) -> Precision:
    """Of distances of bytes times a scale, and what is added."""
    taps = layer.weight[0].numel()
    distances = Precision.of_range(layer.qparams.levels * math.sqrt(taps))
    result = distances.scaled(usual_of(scale))
    return Precision.of_sum([result, added.precision]) if added else result


def _distance_bounds(layer: QuantAdder) -> Bounds:
    """The smallest and the largest distance of each filter, whatever bytes it meets."""
    weight = layer.weight.cpu().flatten(1).long()
    farthest = torch.maximum(weight, layer.qparams.levels - weight).sum(1)
    return Bounds(torch.zeros_like(farthest), farthest)


def _geometry(layer: QuantAdderConv2d | nn.Conv2d, shape: Sequence[int]) -> dict[str, Setting]:
    """The settings of filters that look at an image of this shape."""
    if isinstance(layer, QuantAdderConv2d):
        geometry = Geometry.of(layer.stride, layer.padding, layer.dilation, layer.groups)
        around, by_size, zero = layer.around, layer.same, {"zero": layer.zero_point}
    else:
        geometry, around = effective_geometry(layer)
        by_size, zero = type(layer).__name__ == "Conv2dSame", {}
    rows, columns = geometry.padding
    padding = around if any(around) else [columns, columns, rows, rows]
    if by_size:
        padding = same_padding(shape[-2:], layer.kernel_size, geometry.stride, geometry.dilation)
    return {
        "stride": geometry.stride,
        "padding": tuple(padding),
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "padding_mode": "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        **zero,
    }


def lower_product(values: LoweredValues, node: Node) -> None:
    source, value = _clamped_operand(values, node)
    layer = module_of(node)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    kind, settings, groups, pads_zeros = "shift_linear", dict[str, Setting](), 1, False
    if isinstance(layer, nn.Conv2d):
        kind, settings = "shift_conv", _geometry(layer, source.meta["shape"])
        groups = layer.groups
        pads_zeros = settings["padding_mode"] == "constant" and settings["padding"] != (0, 0, 0, 0)
    base = values.wanted(node)
    if base is None:
        base = _base_for(_largest_result(layer, value.real), values.grid(node))
    usual = value.precision.usual / float(value.scale.mean())
    fitted = fit_product(
        layer.weight.cpu(), None if layer.bias is None else layer.bias.cpu(),
        value.scale, value.zero, value.bounds,
        usual=usual, base=base, groups=groups, pads_zeros=pads_zeros, terms=values.filter_terms,
    )  # fmt: skip
    unit = number(base * 2.0 ** -cast(int, fitted.settings["fraction"]))
    precision = _precision_of_product(layer, fitted, value.precision, float(unit))
    result = Value(unit, number(0.0), fitted.bounds, precision)
    values.emit(node, kind, [values.slot(source)], result, settings, fitted)


def _clamped_operand(values: LoweredValues, node: Node) -> tuple[Node, Value]:
    """What a kept layer reads. Behind another one it is clamped to its range on the calibration
    data and as much again at either end: what it might reach with any image grows with each such
    layer, and would take all bits."""
    source, value = values.operand(node)
    low, high = values.kept_inputs.get(node.name, (0.0, 0.0))
    if not value.precision.kept or low == high:
        return source, value
    width, scale, zero = high - low, float(value.scale), float(value.zero)
    before = int(value.bounds.low), int(value.bounds.high)
    ends = (nearest_integer(end / scale + zero) for end in (low - width, high + width))
    least, most = (min(max(end, before[0]), before[1]) for end in ends)
    if least == most or (least, most) == before:
        return source, value
    slot = values.builder.clamp(name_of(source), values.slot(source), least, most)
    precision = replace(value.precision, usual=Precision.of_range(width).usual)
    value = replace(value, bounds=Bounds.of(least, most), precision=precision)
    values.put(source, Place(slot), value)
    return source, value


def _precision_of_product(
    layer: nn.Conv2d | nn.Linear, fitted: Fitted, operand: Precision, unit: float
) -> Precision:
    """Each shift to the right rounds."""
    rounds = (fitted.tensors["signs"] != 0) & (fitted.tensors["shifts"] < 0)
    result = operand.scaled(usual_of(layer.weight.flatten(1).norm(dim=1)))
    result = result.rounded(unit, float(rounds.sum()) / len(layer.weight))
    return replace(result, kept=operand.kept + 1)


def _largest_result(layer: nn.Conv2d | nn.Linear, largest: float) -> float:
    sizes = layer.weight.double().abs().flatten(1).sum(1) * largest
    return float((sizes if layer.bias is None else sizes + layer.bias.double().abs()).max())


def _base_for(real: float, grid: float) -> float:
    """A grid's unit by a power of two, of which fraction bits give 32 bits to results up to a
    magnitude."""
    if not real or not math.isfinite(real):  # fitting the layer says what is wrong with it
        return 1.0
    spare = LIMIT.bit_length() - MOST_FRACTION_BITS
    return float(grid * 2.0 ** (math.floor(math.log2(real / grid)) - spare))


def lower_norm(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    norm = module_of(node)
    if norm is None or not is_foldable(norm):
        raise RefusedError("it divides by statistics of its input, or computes something else")
    assert isinstance(norm, _BatchNorm)
    gain, mean, beta = statistics_of_norm(norm)
    # Those of 1/sqrt(eps) would take the bits of all others.
    constant = never_vary(norm).cpu()
    gain = gain.masked_fill(constant, 0)
    offset = beta - mean * gain
    real, reach = (
        float((gain.abs() * largest + offset.abs()).max()) for largest in (value.real, value.reach)
    )
    result = values.free(node, real, reach)
    values.put_shaped(node, *values.rescaled(node, source, result, gain, offset))


def lower_to_bytes(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    scale, zero_point, levels = (cast(float, argument) for argument in node.args[1:])
    result = Value.of_bytes(number(scale), number(zero_point), int(levels))
    if value.is_bytes and value.scale.equal(result.scale) and value.zero.equal(result.zero):
        return values.pass_on(node)
    values.put_shaped(node, *values.rescaled(node, source, result))
