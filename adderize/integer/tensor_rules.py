"""Sums, ranges, surroundings and joints of tensors of integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from adderize.dataflow.graphs import argument, module_of
from adderize.integer.affine import affine_of
from adderize.integer.fixed_point import Bounds
from adderize.integer.lowered_values import LoweredValues
from adderize.integer.precision import Precision
from adderize.integer.refusal import RefusedError
from adderize.integer.value import Value, nearest_integer
from adderize.quantize.calls import clamp_bounds, is_repetition


def lower_add(values: LoweredValues, node: Node) -> None:
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        raise RefusedError("it scales what it adds")
    (first, a), (second, b) = values.operand(node), values.operand(node, 1)
    if a.scale.dim() or b.scale.dim() or first.meta["shape"] != second.meta["shape"]:
        raise RefusedError("it adds tensors of two shapes, or to the image")
    result = values.free(node, a.real + b.real, a.reach + b.reach, float(a.scale))
    values.put_shaped(node, *values.rescaled(node, first, result, added=second))


def lower_affine(values: LoweredValues, node: Node) -> None:
    """The same integers with another scale and zero; negative factors mirror them first."""
    affine = affine_of(node)
    (source,) = node.all_input_nodes
    assert affine is not None
    value, size = values.values[source], abs(affine.gain)
    if affine.gain > 0:
        values.put(node, values.places[source], _affine(value, size, affine.offset))
        return
    if value.scale.dim():
        raise RefusedError("it changes the sign of an image whose channels have several scales")
    ends = value.bounds.low.min() + value.bounds.high.max()
    mirrored = replace(value, zero=ends - value.zero)
    slot, mirrored = values.rescaled(node, source, mirrored, gain=-1.0)
    values.put_shaped(node, slot, _affine(mirrored, size, affine.offset))


def _affine(value: Value, gain: float, offset: float) -> Value:
    scale = gain * value.scale
    precision = value.precision.scaled(gain)
    return replace(value, scale=scale, zero=value.zero - offset / scale, precision=precision)


def lower_move(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    if any(other in values.values for other in node.all_input_nodes if other is not source):
        raise RefusedError("it moves values to places that the image decides")
    if value.scale.dim():
        raise RefusedError("it moves channels of the image that have several scales")
    if is_repetition(node):
        _check_whole_factors(source.meta["shape"][2:], node.meta["shape"][2:])
    values.move(node, source)


def _check_whole_factors(before: Sequence[int], after: Sequence[int]) -> None:
    if any(new % old and old % new for old, new in zip(before, after, strict=True)):
        raise RefusedError(
            f"it makes {after} of {before}, which no strides express: expected whole factors, as "
            f"of a scale_factor of 2"
        )


def lower_clamp(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    ends = clamp_bounds(node)
    assert ends is not None
    if value.scale.dim():
        raise RefusedError("it clamps the image")
    scale, zero = float(value.scale), float(value.zero)
    low, high = (nearest_integer(end / scale + zero) for end in ends)
    # As torch has it, all values are the upper end where that lies below the lower one.
    low, high = (min(max(int(end), low), high) for end in (value.bounds.low, value.bounds.high))
    is_bytes = value.is_bytes and low >= 0 and high <= 255
    cuts = int(value.bounds.low) < zero and (low >= zero or high <= zero)
    precision = value.precision.rectified() if cuts else value.precision
    precision = precision.within(scale * (high - low))
    result = replace(value, bounds=Bounds.of(low, high), precision=precision, is_bytes=is_bytes)
    values.emit(node, "clamp", [values.slot(source)], result, {"low": low, "high": high})


def lower_pad(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    module: Any = module_of(node)
    if module is None:
        pads = argument(node, 1, "pad")
        mode, number = argument(node, 2, "mode", "constant"), argument(node, 3, "value") or 0.0
    else:
        pads, mode, number = module.padding, "constant", module.value
    if mode != "constant" or value.scale.dim() or not isinstance(number, (int, float)):
        raise RefusedError("it pads with something else than a number")
    rank = len(source.meta["shape"])
    if len(pads) > 2 * (rank - 1):
        raise RefusedError("it pads the batch")
    integer = nearest_integer(number / float(value.scale) + float(value.zero))
    low, high = int(value.bounds.low), int(value.bounds.high)
    bounds = Bounds.of(min(low, integer), max(high, integer))
    result = replace(value, bounds=bounds, is_bytes=value.is_bytes and 0 <= integer <= 255)
    if any(pad < 0 for pad in pads):  # what is cut off comes first
        values.move(node, source, lambda index: F.pad(index, [min(pad, 0) for pad in pads]))
        source = node
    inside = values.slot(source)
    padding = tuple(max(pad, 0) for pad in pads) + (0,) * (2 * (rank - 1) - len(pads))
    values.emit(node, "pad", [inside], result, {"padding": padding, "value": integer})


def lower_join(values: LoweredValues, node: Node) -> None:
    tensors: Any = node.args[0]
    if isinstance(tensors, Node):
        raise RefusedError("it joins a list that is computed: write its tensors one by one")
    if any(tensor not in values.values for tensor in tensors):
        raise RefusedError("it joins a tensor that does not come from the image")
    parts = [values.values[tensor] for tensor in tensors]
    if any(value.scale.dim() for value in parts):
        raise RefusedError("it joins the image")
    dim = argument(node, 1, "dim", 0) % len(node.meta["shape"])
    if dim == 0:
        raise RefusedError("it joins the images of a batch")
    first = parts[0]
    if any((value.scale, value.zero) != (first.scale, first.zero) for value in parts):
        real, reach = max(value.real for value in parts), max(value.reach for value in parts)
        first = values.free(node, real, reach, float(first.scale))
        joined = [values.rescaled(node, tensor, first) for tensor in tensors]
        slots, parts = [slot for slot, _ in joined], [part for _, part in joined]
    else:
        slots = [values.slot(tensor) for tensor in tensors]
        if any(value.is_bytes != first.is_bytes for value in parts):
            slots = [values.widened(node, slot) for slot in slots]
    bounds = Bounds(
        torch.stack([value.bounds.low for value in parts]).min(),
        torch.stack([value.bounds.high for value in parts]).max(),
    )
    is_bytes = all(value.is_bytes for value in parts)
    precision = Precision.of_sum([part.precision for part in parts]).scaled(len(parts) ** -0.5)
    result = replace(first, bounds=bounds, precision=precision, is_bytes=is_bytes)
    values.emit(node, "concat", slots, result, {"dim": dim - 1})
