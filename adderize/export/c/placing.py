"""Views of a program's slots, and the steps that copy values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adderize.errors import AdderizeError
from adderize.export.c.buffers import Dtype, View, as_lines, channels_last, plain
from adderize.export.c.steps import Step
from adderize.integer.program import BYTES_OF, Instruction, Program
from adderize.integer.strides import Integers


class Placing:
    """Steps, and the buffers that they work on.

    Attributes:
        steps: in order of execution.
        sizes: of the buffers, in bytes.
        views: of the program's slots.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.sizes: list[int] = []
        self.views: dict[int, View] = {}

    def new(self, shape: Sequence[int], dtype: Dtype, order: Integers | None = None) -> View:
        """A buffer for values of a shape, channels last if nothing else is said."""
        order = channels_last(shape) if order is None else order
        self.sizes.append(len(order) * BYTES_OF[dtype])
        return View(len(self.sizes) - 1, 0, dtype, order)

    def output(self, instruction: Instruction, order: Integers | None = None) -> View:
        slot = self.program.slots[instruction.output]
        view = self.new(slot.shape, slot.dtype, order)
        self.views[instruction.output] = view
        return view

    def shape(self, slot: int) -> tuple[int, ...]:
        return self.program.slots[slot].shape

    def ordered(self, slot: int, order: Integers, layer: str) -> View:
        """The values of a slot in an order, which may need a copy."""
        view = self.views[slot]
        if np.array_equal(view.order, order):
            return view
        copy = self.new((view.size,), view.dtype, order)
        self.copy(f"{layer}_ordered", "another order", view, view.places[order], copy)
        return copy

    def copy(
        self,
        layer: str,
        text: str,
        source: View,
        places: Integers,
        target: View,
        targets: Integers | None = None,
    ) -> None:
        """Copies values from places of a view to places of another one, by default to all."""
        places = places + source.offset
        targets = (plain(len(places)) if targets is None else targets) + target.offset
        pairs = np.stack([places, targets], 1)
        lines = as_lines(pairs)
        start, end = (
            View(view.buffer, int(first), view.dtype, plain(len(places)))
            for view, first in ((source, places[0]), (target, targets[0]))
        )
        is_bytes = int(source.dtype == "uint8")
        if lines is not None:
            fields = {
                "sizes": lines.sizes,
                "input_steps": tuple(lines.ends[:, 0]),
                "output_steps": tuple(lines.ends[:, 1]),
                "bytes": is_bytes,
            }
            step = Step("move_values", layer, text, start, end, structure="move", fields=fields)
        elif np.array_equal(targets, plain(len(targets)) + targets[0]):
            function = "pick_bytes" if is_bytes else "pick_words"
            start = View(source.buffer, 0, source.dtype, plain(source.offset + source.size))
            step = Step(
                function,
                layer,
                text,
                start,
                end,
                numbers={"count": len(places)},
                fields={"places": places.astype(np.uint32)},
            )
        else:
            raise AdderizeError("it puts values into places without order")
        self.steps.append(step)

    def widened(self, layer: str, view: View) -> View:
        """As int32."""
        wide = self.new((view.size,), "int32", view.order)
        fields = {"outer": 1, "channels": 1, "inner": view.size, "input_bytes": 1}
        self.steps.append(
            Step(
                "rescale",
                layer,
                "bytes as int32",
                view,
                wide,
                structure="scale",
                fields=fields,
                channels=1,
            )
        )
        return wide

    def other(self, instruction: Instruction, output: View) -> View | None:
        if len(instruction.inputs) < 2:
            return None
        return self.ordered(instruction.inputs[1], output.order, instruction.layer)


def unit(dtype: Dtype) -> str:
    return "bytes" if dtype == "uint8" else "words"


def size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
