"""What the instructions of a program compute, as PyTorch modules: each named after its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.integer.epilogue import IntegerLayer, WithEpilogue
from adderize.integer.fixed_point import checked, dropped, factors_of, is_checking
from adderize.integer.integer_adders import IntegerAdderConv, IntegerAdderLinear
from adderize.integer.program import Instruction, Slot
from adderize.ops.bytes import max_pool2d_bytes


class _Product(IntegerLayer):
    shifts: Tensor
    signs: Tensor
    bias: Tensor
    least: int

    def forward(self, x: Tensor) -> Tensor:
        x = self._padded(x.to(torch.int64 if is_checking() else torch.int32))
        # float64 holds every sum exactly: none leaves 32 bits.
        total = self.bias.double().view(-1, *(1,) * (self.shifts.dim() - 3))
        for inputs, factors in self._parts(x):
            total = checked(self._product(inputs, factors) + total)
        return total.to(torch.int32)

    def _parts(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and the integers that they have as factors: left shifts, then right ones."""
        left = self.signs * (self.shifts >= 0)
        if is_checking():
            terms = zip(self.shifts.clamp(min=0), left, strict=True)
            yield from ((x, factors_of(shift[None], sign[None])) for shift, sign in terms)
        else:
            yield x, factors_of(self.shifts.clamp(min=0), left)
        for right in range(1, 1 - self.least):
            yield x >> right, (self.signs * (self.shifts == -right)).sum(0)

    def _padded(self, x: Tensor) -> Tensor:
        return x

    def _product(self, x: Tensor, factors: Tensor) -> Tensor:
        return F.linear(x.double(), factors.double())


class IntegerShiftLinear(_Product):
    pass


class IntegerShiftConv(_Product):
    pad: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        # So many images at once that their patches in float64 stay in the cache.
        patches = self.shifts[0, 0].numel() * math.prod(self.shape[1:])
        parts = x.split(max(2**17 // patches, 1))
        return torch.cat([_Product.forward(self, part) for part in parts])

    def _padded(self, x: Tensor) -> Tensor:
        if not any(self.padding):
            return x
        if self.padding_mode != "constant":
            return F.pad(x.double(), self.padding, self.padding_mode).to(x.dtype)
        pad = self.pad.view(-1, 1, 1)
        return F.pad(x - pad, self.padding) + pad

    def _product(self, x: Tensor, factors: Tensor) -> Tensor:
        x, weight = x.double(), factors.double()
        return torch.conv2d(x, weight, None, self.stride, 0, self.dilation, self.groups)


class IntegerSumPool(IntegerLayer):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pad: int
    drop: int

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        x = F.pad(dropped(x, self.drop).double(), [columns, columns, rows, rows], value=self.pad)
        return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=1).round().to(torch.int32)


class IntegerMaxPool(IntegerLayer):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: int

    def forward(self, x: Tensor) -> Tensor:
        window = (self.kernel, self.stride, self.padding, self.dilation, bool(self.ceil_mode))
        if x.dtype == torch.uint8:
            return max_pool2d_bytes(x, *window)
        return F.max_pool2d(x.double(), *window).to(torch.int32)


class IntegerRescale(WithEpilogue):
    drop: int
    other_drop: int

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            other = dropped(other, self.other_drop)
        return self.finished(dropped(x, self.drop), other, 1)


class IntegerClamp(IntegerLayer):
    low: int
    high: int

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).clamp(self.low, self.high)


class IntegerConcat(IntegerLayer):
    dim: int

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim + 1)


class IntegerPad(IntegerLayer):
    padding: tuple[int, ...]
    value: int

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.to(self.dtype), self.padding, value=self.value)


class IntegerMove(IntegerLayer):
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        images, values = x.shape[0], math.prod(x.shape[1:])
        first = x.contiguous().flatten(1)[:, self.offset :]
        y = first.as_strided((images, *self.sizes), (values, *self.strides))
        return y.reshape(images, *self.shape)


_LAYERS: dict[str, Callable[[Instruction, Slot], IntegerLayer]] = {
    "adder_conv": IntegerAdderConv,
    "adder_linear": IntegerAdderLinear,
    "shift_conv": IntegerShiftConv,
    "shift_linear": IntegerShiftLinear,
    "sum_pool": IntegerSumPool,
    "max_pool": IntegerMaxPool,
    "rescale": IntegerRescale,
    "clamp": IntegerClamp,
    "concat": IntegerConcat,
    "pad": IntegerPad,
    "move": IntegerMove,
}


def layer_of(instruction: Instruction, output: Slot) -> Any:
    """The module that computes an instruction."""
    return _LAYERS[instruction.kind](instruction, output)
