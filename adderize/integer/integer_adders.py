"""The adder layers of a program as PyTorch modules, on the kernels on bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.integer.epilogue import WithEpilogue
from adderize.integer.fixed_point import LIMIT, factors_of, is_checking
from adderize.integer.program import Instruction, Slot
from adderize.ops.bytes import pack


class _Adder(WithEpilogue):
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
            return self.finished(distances, other, 1)
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
        return self._conv(rows, other).reshape(x.shape[0], *self.shape)
