"""Writing a program, instruction by instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from adderize.integer.layer_shifts import LayerShifts
from adderize.integer.program import Instruction, Setting, Slot
from adderize.quantize.calls import free_name


class ProgramBuilder:
    """Slots and instructions so far.

    Attributes:
        slots: the first is the image.
        instructions: in order.
        rows: of the report, for each layer with scales.
    """

    def __init__(self, input_size: Sequence[int]) -> None:
        self.slots = [Slot(tuple(input_size), "uint8")]
        self.instructions: list[Instruction] = []
        self.rows: list[LayerShifts] = []

    def emit(
        self,
        kind: str,
        layer: str,
        inputs: Sequence[int],
        output: Slot,
        settings: Mapping[str, Setting],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Append an instruction; the number of its output's slot."""
        name = free_name(layer, {instruction.layer for instruction in self.instructions})
        self.slots.append(output)
        number = len(self.slots) - 1
        self.instructions.append(
            Instruction(kind, name, tuple(inputs), number, dict(settings), dict(tensors or {}))
        )
        return number

    def clamp(self, layer: str, slot: int, low: int, high: int) -> int:
        """A slot with the values of another one, clamped: the same where what writes it clamps."""
        for position, writer in enumerate(self.instructions):
            if writer.output == slot and "low" in writer.settings:
                given: Any = writer.settings
                low, high = (min(max(end, given["low"]), given["high"]) for end in (low, high))
                settings = {**given, "low": low, "high": high}
                self.instructions[position] = replace(writer, settings=settings)
                return slot
        return self.emit("clamp", layer, [slot], self.slots[slot], {"low": low, "high": high})

    def note(self, terms: int, worst_error: float) -> None:
        """A row of the report for the last instruction."""
        last = self.instructions[-1]
        scales = last.tensors["shifts"][0].numel()
        self.rows.append(LayerShifts(last.layer, last.kind, scales, terms, worst_error))

    def live(self, output: int) -> dict[str, Any]:
        """Slots, instructions, input and output of a program, without what leads nowhere."""
        wanted, kept = {0, output}, []
        for instruction in reversed(self.instructions):
            if instruction.output in wanted:
                wanted.update(instruction.inputs)
                kept.append(instruction)
        numbers = {slot: number for number, slot in enumerate(sorted(wanted))}
        instructions = tuple(
            replace(
                instruction,
                inputs=tuple(numbers[slot] for slot in instruction.inputs),
                output=numbers[instruction.output],
            )
            for instruction in reversed(kept)
        )
        names = {instruction.layer for instruction in instructions}
        self.rows = [row for row in self.rows if row.layer in names]
        return {
            "slots": tuple(self.slots[slot] for slot in sorted(wanted)),
            "instructions": instructions,
            "input": numbers[0],
            "output": numbers[output],
        }


def slot_of(shape: Sequence[int], is_bytes: bool) -> Slot:
    """The slot of a tensor of this shape, batch included."""
    dtype: Literal["uint8", "int32"] = "uint8" if is_bytes else "int32"
    return Slot(tuple(shape[1:]), dtype)
