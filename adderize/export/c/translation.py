"""From a program to calls of C functions, with images as rows of pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adderize.errors import AdderizeError, named
from adderize.export.c.buffers import channels_last, plain
from adderize.export.c.filter_rules import adder_conv, adder_linear, shift_conv, shift_linear
from adderize.export.c.movement_rules import clamp, concat, move, pad, rescale
from adderize.export.c.placing import Placing
from adderize.export.c.pooling_rules import max_pool, sum_pool
from adderize.integer.program import Instruction, Program

_RULES: dict[str, Callable[[Placing, Instruction], None]] = {
    "adder_conv": adder_conv,
    "adder_linear": adder_linear,
    "shift_conv": shift_conv,
    "shift_linear": shift_linear,
    "sum_pool": sum_pool,
    "max_pool": max_pool,
    "rescale": rescale,
    "clamp": clamp,
    "concat": concat,
    "pad": pad,
    "move": move,
}


class Translation(Placing):
    """The steps of a program.

    Attributes:
        image, logits: the numbers of the buffers that the caller holds.

    Raises:
        AdderizeError: an instruction has no form in C: it is named.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        slot = program.slots[program.input]
        self.views = {program.input: self.new(slot.shape, slot.dtype, channels_last(slot.shape))}
        self.image = self.views[program.input].buffer
        for instruction in program.instructions:
            rule = _RULES.get(instruction.kind)
            with named(instruction.layer):
                if rule is None:
                    raise AdderizeError(f"{instruction.kind} has no form in C")
                rule(self, instruction)
        self.logits = self._finish()

    def _finish(self) -> int:
        """The logits, as int32 in the order of their shape."""
        view = self.views[self.program.output]
        if view.dtype == "uint8":
            view = self.widened("logits_widened", view)
        alone = self.sizes[view.buffer] == view.nbytes and view.buffer != self.image
        if not alone or not np.array_equal(view.order, plain(view.size)):
            logits = self.new((view.size,), "int32", plain(view.size))
            self.copy("logits", "the order of the logits", view, view.places, logits)
            view = logits
        return view.buffer
