"""An integer network as a list of instructions: its file format, and what exporters read.

Everything is per image: shapes have no batch. Tensors lie in C order in numbered slots, each
written by one instruction and not changed afterwards. All arithmetic is that of 32-bit integers in
two's complement, ``>>`` rounds down, and no partial sum leaves 32 bits, whatever the image.

Below, x is the first input, r the second where there is one, y the output; C are the channels, the
first dimension of a slot of three. ``round(v, d)`` is ``(v + (1 << d >> 1)) >> d``; v for d = 0.

The *epilogue* of a sum a of channel c, which three kinds share, is::

    t = bias[c] + sum_i signs[i, c] * (a << shifts[i, c])
                + sum_i other_signs[i] * (r << other_shifts[i])          where there is an r
    y = min(max(t >> fraction, low), high)

    settings  fraction, low, high
    tensors   shifts, signs int8 (T, C); bias int32 (C,); where there is an r also
              other_shifts, other_signs int8 (U,)

r has the shape of y. Both are uint8 or int32, as their slots say. A sign is -1, 0 or 1; at 0 the
term is left out, and its shift is 0. Settings are integers, tuples of integers or, for
`padding_mode`, a name. Pairs are (rows, columns), `padding` of filters is (left, right, top,
bottom).

adder_conv
    x uint8 (Cin, H, W) -> (C, OH, OW), y uint8 or int32.
    ``a = sum |x[taps] - weight[c]|``, then the epilogue. The image is surrounded by the byte `zero`
    for padding_mode "constant", or by its own bytes for "reflect", "replicate", "circular", as
    ``torch.nn.functional.pad`` does it.
    settings  stride, padding, dilation, groups, padding_mode, zero; levels: the largest byte of x
              and of the filters, 2^bits - 1
    tensors   weight uint8 (C, Cin/groups, kh, kw), and those of the epilogue
adder_linear
    x uint8 (..., K) -> (..., C). ``a = sum_k |x[..., k] - weight[c, k]|``, then the epilogue, whose
    channels are the last dimension.
    settings  levels
    tensors   weight uint8 (C, K), and those of the epilogue
shift_conv
    x uint8 or int32 (Cin, H, W) -> int32 (C, OH, OW).
    ``y = bias[c] + sum over taps k, i of signs[i, c, k] * (x[k] << shifts[i, c, k])``, where a
    negative shift is one to the right: ``x[k] >> -shifts[i, c, k]``.
    For padding_mode "constant" a channel is surrounded by its `pad`.
    settings  stride, padding, dilation, groups, padding_mode; least: no shift is below it, 0 or
              less; fraction: y is in units of 2^-fraction, which nothing here depends on
    tensors   shifts, signs int8 (T, C, Cin/groups, kh, kw); bias int32 (C,); pad int32 (Cin,)
shift_linear
    x uint8 or int32 (..., K) -> int32 (..., C), likewise.
    settings  least, fraction
    tensors   shifts, signs int8 (T, C, K); bias int32 (C,)
sum_pool
    x uint8 or int32 (C, H, W) -> int32 (C, OH, OW). ``y = sum of round(x, drop)`` over each window;
    `padding` rows and columns of the integer `pad`, on either side, replace ``round(...)``.
    settings  kernel, stride, padding (pairs), pad, drop
max_pool
    x (C, H, W) -> (C, OH, OW) of the same dtype: the largest value of each window, as
    ``torch.nn.functional.max_pool2d``; what surrounds the image counts as nothing. `ceil_mode` is 0
    or 1: windows that begin inside the image, or in the padding before it, may end outside.
    settings  kernel, stride, padding, dilation (pairs), ceil_mode
rescale
    x (C, ...) -> (C, ...), both uint8 or int32. The epilogue of ``a = round(x, drop)``, with
    ``round(r, other_drop)`` in the place of r. Its channels are x's first dimension, or it has one
    column for all.
    settings  drop, other_drop (0 without r), and those of the epilogue
    tensors   those of the epilogue; shifts and signs (T, C) or (T, 1), bias (C,) or (1,)
clamp
    ``y = min(max(x, low), high)``. x may be uint8 and y int32.
    settings  low, high
concat
    The inputs, one or more, of one dtype, side by side in dimension `dim` of the slots' shapes.
    settings  dim
pad
    x surrounded by the integer `value`. x may be uint8 and y int32.
    settings  padding: before and after for each dimension, the last first; value
move
    Values of x in another order or shape, some of them several times, and no others::

        y[i] = x[offset + i_0 strides_0 + i_1 strides_1 + ...]

    for flat i with the digits (i_0, i_1, ...) over `sizes`, the last fastest. Strides are not
    negative; 0 repeats values. Where strides are (1,), y is a contiguous part of x, and needs no
    copy.
    settings  offset, sizes, strides
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adderize.integer.layer_shifts import ShiftReport

Setting = int | str | tuple[int, ...]
BYTES_OF = {"uint8": 1, "int32": 4}  # of a value
KINDS = (
    "adder_conv", "adder_linear", "shift_conv", "shift_linear", "sum_pool", "max_pool", "rescale",
    "clamp", "concat", "pad", "move",
)  # fmt: skip
ADDERS = ("adder_conv", "adder_linear")
PRODUCTS = ("shift_conv", "shift_linear")


@dataclass(frozen=True)
class Slot:
    """A tensor of one image.

    Attributes:
        shape: without the batch.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: Literal["uint8", "int32"]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * BYTES_OF[self.dtype]


@dataclass(frozen=True)
class Instruction:
    """One step; :mod:`adderize.integer.program` says what each kind computes.

    Attributes:
        kind: one of ``KINDS``.
        layer: its name, unique in the program.
        inputs: slots that it reads.
        output: the slot that it writes.
        settings, tensors: those of its kind, all of them.
    """

    kind: str
    layer: str
    inputs: tuple[int, ...]
    output: int
    settings: Mapping[str, Setting]
    tensors: Mapping[str, Tensor]

    @property
    def is_alias(self) -> bool:
        """Whether the output is a contiguous part of the input, from ``settings["offset"]`` on."""
        return self.kind == "move" and self.settings["strides"] == (1,)


@dataclass(frozen=True)
class Program:
    """An integer-only network, from the bytes of an image to its logits.

    Attributes:
        slots: all tensors of activations.
        instructions: in order of execution.
        input: the slot of the image, uint8 (C, H, W).
        output: the slot of the logits; they are int32, those of a uint8 slot are widened.
        mean, std: of pixels in [0, 1], per channel: what the float network was normalised with.
        logit_scale, logit_zero: logits in the float network's unit are
            ``logit_scale * (output - logit_zero)``.
        report: terms and errors of the layers' scales.
    """

    slots: tuple[Slot, ...]
    instructions: tuple[Instruction, ...]
    input: int
    output: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logit_scale: float
    logit_zero: float
    report: ShiftReport

    @property
    def input_size(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.slots[self.input].shape

    def last_readers(self) -> list[int]:
        """For each slot the position of the last instruction that reads it.

        -1 where none does, and the number of instructions for the output.
        """
        last = [-1] * len(self.slots)
        for position, instruction in enumerate(self.instructions):
            for slot in instruction.inputs:
                last[slot] = position
        last[self.output] = len(self.instructions)
        return last

    def activation_bytes(self) -> int:
        """The most that slots need at a time; what is an alias needs nothing of its own."""
        place, last = list(range(len(self.slots))), self.last_readers()
        for step in self.instructions:
            if step.is_alias:
                place[step.output] = place[step.inputs[0]]
        until = {slot: max(last[i] for i, p in enumerate(place) if p == slot) for slot in place}
        held, most = {self.input}, self.slots[self.input].nbytes
        for position, step in enumerate(self.instructions):
            held.add(place[step.output])
            most = max(most, sum(self.slots[slot].nbytes for slot in held))
            held = {slot for slot in held if until[slot] > position}
        return most
