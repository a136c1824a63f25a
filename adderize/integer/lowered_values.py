"""Where the values of a graph lie in a program, and what their integers stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from adderize.dataflow.graphs import operation
from adderize.integer.affine import affine_of
from adderize.integer.fitting import Fitted, centre, fit_epilogue
from adderize.integer.fixed_point import MOST_FRACTION_BITS, Bounds
from adderize.integer.moves import indices, is_move, moved, strided_copy
from adderize.integer.precision import Precision, usual_of
from adderize.integer.program import Setting
from adderize.integer.program_builder import ProgramBuilder, slot_of
from adderize.integer.refusal import RefusedError
from adderize.integer.value import Value, number
from adderize.quantize.calls import clamp_bounds, name_of
from adderize.quantize.qparams import quantize_bytes

# The bits of the largest magnitude of a value that no bytes follow. Those of an adder leave more to
# its sums, which may reach beyond the range that it is clamped to.
VALUE_BITS = 28
ADDER_BITS = 22
# The bits of a scale that is no power of two.
SCALE_BITS = 12
# The bits of the sums of an epilogue, without the bias' rounding.
_SUM_BITS = 30


@dataclass(frozen=True)
class Place:
    """Where a node's value lies.

    Attributes:
        slot: that holds it.
        index: the positions of two images' values in the slot, float64 (2, ...), several tensors
            for a node that gives several; None where it is the slot as it stands.
    """

    slot: int
    index: Any = None


class LoweredValues:
    """A program that grows with the nodes of a graph.

    Each node has the shape of its value, for two images, in ``meta["shape"]``, and other results in
    ``meta["result"]``.

    Args:
        input_size: (C, H, W).
        kept_inputs: the ranges of kept layers' inputs on the calibration data, by the names of
            their calls.
        terms, filter_terms: powers of two of a scale, and of a kept layer's weight.

    Attributes:
        builder: the program so far.
        values: what the integers of each node stand for.
        places: where they lie.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        kept_inputs: Mapping[str, tuple[float, float]],
        *,
        terms: int,
        filter_terms: int,
    ) -> None:
        self.terms, self.filter_terms, self.kept_inputs = terms, filter_terms, kept_inputs
        self.builder = ProgramBuilder(input_size)
        self.values: dict[Node, Value] = {}
        self.places: dict[Node, Place] = {}

    def operand(self, node: Node, position: int = 0) -> tuple[Node, Value]:
        """An argument of a node, and what its integers stand for."""
        source = node.args[position]
        if not isinstance(source, Node) or source not in self.values:
            raise RefusedError("it reads a tensor that does not come from the image")
        return source, self.values[source]

    def slot(self, node: Node) -> int:
        """The slot that holds a node's value, and nothing else."""
        place = self.places[node]
        if isinstance(place.index, Tensor):
            source = self.builder.slots[place.slot]
            settings = strided_copy(node, place.index, source.numel)
            output = slot_of(place.index.shape, source.dtype == "uint8")
            number = place.slot
            if output != source or settings["sizes"] != (source.numel,):
                number = self.builder.emit("move", name_of(node), [number], output, settings)
            place = self.places[node] = Place(number)
        elif place.index is not None:
            raise RefusedError("it reads several tensors as one")
        return place.slot

    def put(self, node: Node, place: Place, value: Value) -> None:
        """A node's value lies there, and stands for this.

        Raises:
            AdderizeError: rounding leaves too little of usual values.
        """
        value.precision.check()
        self.places[node], self.values[node] = place, value

    def put_shaped(self, node: Node, slot: int, value: Value) -> None:
        """A node's value is what a slot holds, whatever shape that has."""
        shape, wanted = self.builder.slots[slot].shape, node.meta["shape"]
        same = shape == tuple(wanted[1:])
        self.put(node, Place(slot, None if same else indices((2, *shape)).view(wanted)), value)

    def pass_on(self, node: Node) -> None:
        """A node is its operand."""
        source, value = self.operand(node)
        self.put(node, self.places[source], value)

    def move(self, node: Node, source: Node, step: Callable[[Any], Any] | None = None) -> None:
        """A node has a source's values in another order: that of its own operation, or a step's.

        Moves that follow each other are one where strides express it.
        """
        place = self.places[source]
        if place.index is not None:
            try:
                return self._move_from(node, source, place, place.index, step)
            except RefusedError:
                place = Place(self.slot(source))
        index = indices((2, *self.builder.slots[place.slot].shape))
        self._move_from(node, source, place, index, step)

    def _move_from(
        self,
        node: Node,
        source: Node,
        place: Place,
        index: Any,
        step: Callable[[Any], Any] | None,
    ) -> None:
        index = step(index) if step else moved(node, source, index)
        for part in (index,) if isinstance(index, Tensor) else index:
            strided_copy(node, part, self.builder.slots[place.slot].numel)
        self.put(node, Place(place.slot, index), self.values[source])

    def widened(self, node: Node, slot: int) -> int:
        """A slot of bytes as one of 32 bits."""
        source = self.builder.slots[slot]
        if source.dtype == "int32":
            return slot
        wide = replace(source, dtype="int32")
        limits: dict[str, Setting] = {"low": 0, "high": 255}
        return self.builder.emit("clamp", name_of(node), [slot], wide, limits)

    def emit(
        self,
        node: Node,
        kind: str,
        inputs: Sequence[int],
        value: Value,
        settings: Mapping[str, Setting],
        fitted: Fitted | None = None,
        shape: Sequence[int] = (),
    ) -> None:
        """An instruction that computes a node's value.

        Args:
            fitted: more settings, and the tensors.
            shape: of the result, batch included; by default the node's.
        """
        output = slot_of(shape or node.meta["shape"], value.is_bytes)
        given = {**settings, **(fitted.settings if fitted else {})}
        tensors = fitted.tensors if fitted else {}
        slot = self.builder.emit(kind, name_of(node), inputs, output, given, tensors)
        if fitted:
            self.builder.note(len(fitted.tensors["shifts"]), fitted.worst_error)
        self.put_shaped(node, slot, value)

    def wanted(self, node: Node) -> float | None:
        """The scale of the bytes that a node's value becomes, if it does."""
        for user in node.users:
            if user.target is quantize_bytes:
                return cast(float, user.args[1])
            affine = affine_of(user)
            passes = clamp_bounds(user) is not None or is_move(user) or operation(user) == "add"
            if affine is not None or passes:
                wanted = self.wanted(user)
                if wanted is not None:
                    return wanted / abs(affine.gain) if affine else wanted
        return None

    def grid(self, node: Node) -> float:
        """The unit of what a node's value is added to, if that is known: in units that are powers
        of two apart the sum needs no scales."""
        for user in node.users:
            if operation(user) == "add":
                others = [other for other in user.all_input_nodes if other is not node]
                known = [self.values[other].scale for other in others if other in self.values]
                if known and not known[0].dim():
                    return float(known[0])
        return 1.0

    def free(self, node: Node, real: float, reach: float, scale: float | None = None) -> Value:
        """Integers of 32 bits for values up to a magnitude: bytes that follow are some bits of
        them, where any do, else those of a scale are. What they are made of holds the reach."""
        largest = max(real, reach / 2 ** (_SUM_BITS - VALUE_BITS))
        unit = unit_for(largest, self.wanted(node) or scale, VALUE_BITS)
        most = math.ceil(real / unit) + 1
        return Value(number(unit), number(0.0), Bounds.of(-most, most), Precision(real))

    def rescaled(
        self,
        node: Node,
        source: Node,
        result: Value,
        gain: Tensor | float = 1.0,
        offset: Tensor | float = 0.0,
        added: Node | None = None,
    ) -> tuple[int, Value]:
        """A slot with ``gain * source + offset + added`` in the integers of `result`, which is
        returned with its precision.

        It is named after `node`, and has the shape of `source`.
        """
        inputs = [self.slot(node) for node in (source, added) if node is not None]
        values = [self.values[node] for node in (source, added) if node is not None]
        scales = [
            gain * values[0].scale / result.scale,
            *(v.scale / result.scale for v in values[1:]),
        ]
        drops = _drops(values, scales, float(result.bounds.largest))
        other, other_drop = None, 0
        if added is not None:
            other_drop, second = drops[1], values[1].narrowed(drops[1])
            other = (float(second.scale / result.scale), float(second.zero), second.bounds)
        drop, value = drops[0], values[0].narrowed(drops[0])
        scale = (gain * value.scale / result.scale).reshape(-1)
        fitted = fit_epilogue(
            scale, (offset / result.scale - scale * value.zero).reshape(-1), value.bounds,
            terms=self.terms, low=int(result.bounds.low), high=int(result.bounds.high),
            zero=float(result.zero), about=centre(float(result.zero), result.bounds), other=other,
        )  # fmt: skip
        settings = {"drop": drop, "other_drop": other_drop, **fitted.settings}
        slot = slot_of(source.meta["shape"], result.is_bytes)
        number = self.builder.emit("rescale", name_of(node), inputs, slot, settings, fitted.tensors)
        self.builder.note(self.terms, fitted.worst_error)
        precision = _precision_of_sum(values, scales, drops, result)
        if result.is_bytes:  # their range tells what is usual
            replace(precision, usual=result.precision.usual).check()
            return number, result
        return number, replace(result, precision=precision)


def _precision_of_sum(
    values: Sequence[Value], scales: Sequence[Tensor], drops: Sequence[int], result: Value
) -> Precision:
    """Of what an epilogue makes of operands that lose bits first."""
    unit, parts = float(result.scale), list[Precision]()
    for value, scale, drop in zip(values, scales, drops, strict=True):
        gain = unit * usual_of(scale / value.scale)
        lost = float(value.scale.mean()) * 2.0**drop if drop else 0.0
        parts.append(value.precision.rounded(lost).scaled(gain))
    return Precision.of_sum(parts).rounded(0.0 if result.is_bytes else unit)


def _drops(values: Sequence[Value], scales: Sequence[Tensor], most: float) -> list[int]:
    """The low bits that the operands of an epilogue lose: so many that the sums leave their scales
    the bits that these need.

    Args:
        scales: of the operands, in units of the result.
        most: the largest result.
    """
    reaches = (
        float((scale.abs() * (value.bounds.largest + value.zero.abs())).max())
        for value, scale in zip(values, scales, strict=True)
    )
    fraction = _SUM_BITS - math.log2(max(sum(reaches) + min(most, 256), 1))
    fraction = min(math.floor(fraction), MOST_FRACTION_BITS)
    drops = []
    for scale in scales:
        mantissas, exponents = torch.frexp(scale.abs())
        bits = 1 if bool((mantissas == 0.5).all()) else SCALE_BITS
        drops.append(max(bits - fraction - int(exponents.max()), 0))
    return drops


def unit_for(real: float, scale: float | None, bits: int) -> float:
    """What one stands for where values up to a magnitude have so many bits.

    A change between it and the scale is a single shift, which is exact.
    """
    unit = real / 2**bits or 1.0
    return scale * 2.0 ** math.ceil(math.log2(unit / scale)) if scale else unit
