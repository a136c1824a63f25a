"""From a program to calls of C functions, with images as rows of pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from adderize.errors import AdderizeError
from adderize.export.c.buffers import View, channels_last, plain
from adderize.export.c.filter_rules import FilterRules
from adderize.export.c.movement_rules import MovementRules
from adderize.export.c.placing import size, unit
from adderize.export.c.steps import Fields, Step
from adderize.integer.program import Instruction, Program


class Translation(FilterRules, MovementRules):
    """The steps of a program.

    Attributes:
        image, logits: the numbers of the buffers that the caller holds.

    Raises:
        AdderizeError: an instruction has no form in C: it is named.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        slot = program.slots[program.input]
        self.views = {program.input: self._new(slot.shape, slot.dtype, channels_last(slot.shape))}
        self.image = self.views[program.input].buffer
        for instruction in program.instructions:
            rule = self._rules().get(instruction.kind)
            if rule is None:
                raise AdderizeError(f"{instruction.layer}: {instruction.kind} has no form in C")
            try:
                rule(instruction)
            except AdderizeError as error:
                raise AdderizeError(f"{instruction.layer}: {error}") from error
        self.logits = self._finish()

    def _rules(self) -> dict[str, Callable[[Instruction], None]]:
        return {
            "adder_conv": self._adder_conv,
            "adder_linear": self._adder_linear,
            "shift_conv": self._shift_conv,
            "shift_linear": self._shift_linear,
            "sum_pool": self._sum_pool,
            "max_pool": self._max_pool,
            "rescale": self._rescale,
            "clamp": self._clamp,
            "concat": self._concat,
            "pad": self._pad,
            "move": self._move,
        }

    def _pool(self, instruction: Instruction) -> tuple[View, View, Fields, str]:
        """Input, output, windows and their description."""
        slot, settings = instruction.inputs[0], instruction.settings
        shape = self._shape(slot)
        image = self._ordered(slot, channels_last(shape), instruction.layer)
        kernel, (rows, columns) = cast(Any, (settings["kernel"], settings["padding"]))
        windows = self._windows(instruction, shape, kernel, (columns, columns, rows, rows))
        output = self._output(instruction)
        text = f"{size(shape)} -> {size(self._shape(instruction.output))}"
        return image, output, windows, f"{text}, windows {kernel[0]} x {kernel[1]}"

    def _sum_pool(self, instruction: Instruction) -> None:
        image, output, windows, text = self._pool(instruction)
        fields = {
            "pad": instruction.settings["pad"],
            "input_bytes": int(image.dtype == "uint8"),
            "drop": instruction.settings["drop"],
        }
        self.steps.append(
            Step(
                "sum_pool",
                instruction.layer,
                f"sums, {text}",
                image,
                output,
                windows=windows,
                structure="sum",
                fields=fields,
                channels=windows["channels"],
            )
        )

    def _max_pool(self, instruction: Instruction) -> None:
        image, output, windows, text = self._pool(instruction)
        function = f"max_pool_{unit(image.dtype)}"
        self.steps.append(
            Step(function, instruction.layer, f"maxima, {text}", image, output, windows=windows)
        )

    def _finish(self) -> int:
        """The logits, as int32 in the order of their shape."""
        view = self.views[self.program.output]
        if view.dtype == "uint8":
            view = self._widened("logits_widened", view)
        alone = self.sizes[view.buffer] == view.nbytes and view.buffer != self.image
        if not alone or not np.array_equal(view.order, plain(view.size)):
            logits = self._new((view.size,), "int32", plain(view.size))
            self._copy("logits", "the order of the logits", view, view.places, logits)
            view = logits
        return view.buffer
