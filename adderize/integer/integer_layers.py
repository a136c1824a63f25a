"""What the instructions of a program compute, as PyTorch modules: each named after its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.integer.fixed_point import LIMIT, checked, dropped, factors_of, is_checking
from adderize.integer.program import Instruction, Slot
from adderize.ops.bytes import max_pool2d_bytes, pack


class IntegerLayer(nn.Module):
    """One instruction: its settings are attributes, its tensors buffers, of the same names.

    Shape:
        as the instruction's slots, with a batch in front.
    """

    def __init__(self, instruction: Instruction, output: Slot) -> None:
        super().__init__()
        self.kind, self.shape = instruction.kind, output.shape
        self.dtype = torch.uint8 if output.dtype == "uint8" else torch.int32
        self._names = tuple(instruction.settings)
        for name, value in instruction.settings.items():
            setattr(self, name, value)
        for name, tensor in instruction.tensors.items():
            self.register_buffer(name, tensor)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._names)


class _WithEpilogue(IntegerLayer):
    shifts: Tensor
    signs: Tensor
    bias: Tensor
    other_shifts: Tensor
    other_signs: Tensor
    fraction: int
    low: int
    high: int

    def _finished(self, sums: Tensor, other: Tensor | None, dim: int) -> Tensor:
        """The epilogue of sums whose channels are in dimension `dim`."""
        around = [1] * sums.dim()
        around[dim] = -1
        total = (self._by_shifts if is_checking() else self._by_factors)(sums, other, around)
        return (total >> self.fraction).clamp_(self.low, self.high).to(self.dtype)

    def _by_factors(self, sums: Tensor, other: Tensor | None, around: list[int]) -> Tensor:
        factor = factors_of(self.shifts, self.signs).to(torch.int32)
        total = sums.to(torch.int32) * factor.view(around)
        total += self.bias.view(around)
        if other is not None:
            factor = factors_of(self.other_shifts, self.other_signs).to(torch.int32)
            total += other.to(torch.int32) * factor
        return total

    def _by_shifts(self, sums: Tensor, other: Tensor | None, around: list[int]) -> Tensor:
        total = self.bias.long().view(around).expand_as(sums)
        for shift, sign in zip(self.shifts.long(), self.signs.long(), strict=True):
            total = checked(total + (sums.long() << shift.view(around)) * sign.view(around))
        if other is not None:
            for shift, sign in zip(self.other_shifts.long(), self.other_signs.long(), strict=True):
                total = checked(total + (other.long() << shift) * sign)
        return total


class _Adder(_WithEpilogue):
    weight: Tensor
    packed: Tensor
    factor: Tensor
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    zero: int = 0

    def __init__(self, instruction: Instruction, output: Slot) -> None:
        super().__init__(instruction, output)
        weight = self.weight if self.weight.dim() == 4 else self.weight[:, :, None, None]
        self._weight_shape = list(weight.shape)
        self.register_buffer("packed", pack(weight, self.groups))
        self.register_buffer("factor", factors_of(self.shifts, self.signs).to(torch.int32))
        self._other_factor = 0
        if "other_shifts" in instruction.tensors:
            self._other_factor = int(factors_of(self.other_shifts, self.other_signs))

    def _conv(
        self, x: Tensor, other: Tensor | None = None, padding: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """(N, Cin, H, W) -> (N, C, OH, OW), epilogue included."""
        if is_checking():
            ones, zeros = torch.ones_like(self.bias), torch.zeros_like(self.bias)
            everything = (-LIMIT, LIMIT, True)
            distances = self._shifted(x, padding, (ones, zeros, None, 0), 0, everything)
            return self._finished(distances, other, 1)
        scales = (self.factor, self.bias, other, self._other_factor)
        limits = (self.low, self.high, self.dtype == torch.int32)
        return self._shifted(x, padding, scales, self.fraction, limits)

    def _shifted(
        self,
        x: Tensor,
        padding: tuple[int, int],
        scales: tuple[Tensor, Tensor, Tensor | None, int],
        fraction: int,
        limits: tuple[int, int, bool],
    ) -> Tensor:
        result: Tensor = torch.ops.adderize.adder_conv2d_u8_shifted(
            x, self.packed, self._weight_shape, *scales, self.zero,
            self.stride, padding, self.dilation, self.groups, fraction, *limits,
        )  # fmt: skip
        return result


class IntegerAdderConv(_Adder):
    padding: tuple[int, int, int, int]
    padding_mode: str

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        left, right, top, bottom = self.padding
        if self.padding_mode == "constant" and left == right and top == bottom:
            return self._conv(x, other, (top, left))
        zero = self.zero if self.padding_mode == "constant" else None
        return self._conv(F.pad(x, self.padding, self.padding_mode, zero), other)


class IntegerAdderLinear(_Adder):
    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1], 1, 1)
        if other is not None:
            other = other.reshape(-1, self.shape[-1], 1, 1)
        return self._conv(rows, other).reshape(len(x), *self.shape)


class _Product(IntegerLayer):
    shifts: Tensor
    signs: Tensor
    bias: Tensor
    drop: int

    def forward(self, x: Tensor) -> Tensor:
        x = self._padded(dropped(x, self.drop).to(torch.int64 if is_checking() else torch.int32))
        bias = self.bias.double().view(-1, *(1,) * (self.shifts.dim() - 3))
        # float64 holds every sum exactly: none leaves 32 bits.
        if not is_checking():
            return (self._product(x, factors_of(self.shifts, self.signs)) + bias).to(torch.int32)
        terms = zip(self.shifts, self.signs, strict=True)
        parts = (self._product(x, factors_of(shift[None], sign[None])) for shift, sign in terms)
        return checked(sum(parts, bias).long()).to(torch.int32)

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


class IntegerRescale(_WithEpilogue):
    drop: int
    other_drop: int

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            other = dropped(other, self.other_drop)
        return self._finished(dropped(x, self.drop), other, 1)


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
        x = x.contiguous()
        images, values = len(x), math.prod(x.shape[1:])
        offset = x.storage_offset() + self.offset
        y = x.as_strided((images, *self.sizes), (values, *self.strides), offset)
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
