"""Integer-only networks: bytes of an image in, 32-bit logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.integer.fixed_point import checking
from adderize.integer.integer_layers import layer_of
from adderize.integer.layer_shifts import ShiftReport
from adderize.integer.program import Program
from adderize.integer.program_checks import check_program


def check_integer_network(network: object) -> None:
    """Raise AdderizeError unless this is an :class:`IntegerNetwork`."""
    if not isinstance(network, IntegerNetwork):
        raise AdderizeError(
            f"got a {type(network).__name__}; expected an integer network: lower a quantized one "
            "with adderize.integer.to_integer()"
        )


class IntegerNetwork(nn.Module):
    """A network that computes with 8-bit and 32-bit integers, shifts and additions only.

    Made by :func:`to_integer`, or from a program. It is made for one size of image.

    Args:
        program: what to compute.

    Attributes:
        program: what it computes, instruction by instruction.
        layers: the instructions as modules, in the same order.

    Shape:
        (N, C, H, W), uint8, the image's raw bytes -> (N, classes), int32.

    Raises:
        AdderizeError: a program that is not sound, or whose sums might leave 32 bits.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        check_program(program)
        self.program = program
        self.layers = nn.ModuleList(
            layer_of(instruction, program.slots[instruction.output])
            for instruction in program.instructions
        )
        self._last_readers = program.last_readers()
        self.eval().requires_grad_(False)

    @property
    def input_size(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.program.input_size

    @property
    def report(self) -> ShiftReport:
        """Terms and errors of the layers' scales."""
        return self.program.report

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images, keep=False)[self.program.output].to(torch.int32)

    def values(self, images: Tensor) -> list[Tensor]:
        """What each slot of the program holds, (N, ...)."""
        values = self._run(images, keep=True)
        return [values[slot] for slot in range(len(self.program.slots))]

    @torch.no_grad()
    def _run(self, images: Tensor, keep: bool) -> dict[int, Tensor]:
        """Slots by number: all of them, or those that nothing reads any more."""
        if images.dtype != torch.uint8 or images.shape[1:] != self.input_size:
            raise AdderizeError(
                f"the images have shape {tuple(images.shape)} and {images.dtype}; expected the raw "
                f"bytes of (N, {', '.join(map(str, self.input_size))}), uint8"
            )
        values = {self.program.input: images}
        steps = zip(self.program.instructions, self.layers, strict=True)
        for position, (instruction, layer) in enumerate(steps):
            result = layer(*(values[slot] for slot in instruction.inputs))
            values[instruction.output] = result
            for slot in () if keep else instruction.inputs:
                if self._last_readers[slot] == position:
                    values.pop(slot, None)
        return values

    def reference(self, images: Tensor) -> Tensor:
        """The same in int64, every shift made, and every partial sum looked at.

        Raises:
            OverflowError: a sum left 32 bits: the proof of the fraction bits is wrong.
        """
        with checking():
            result: Tensor = self(images)
        return result

    def logits(self, images: Tensor) -> Tensor:
        """The logits in the float network's unit, float32 (N, classes)."""
        integers: Tensor = self(images)
        return (integers - self.program.logit_zero) * self.program.logit_scale
