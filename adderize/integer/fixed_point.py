"""Scales as shifts of integers, with proof that 32 bits hold every sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.layers.shift_add import powers_of_two

LIMIT = 2**31 - 1
_checks: ContextVar[bool] = ContextVar("checks", default=False)
MOST_FRACTION_BITS = 24


class Bounds(NamedTuple):
    """The smallest and the largest value of an integer tensor, int64 (C,) or one for all."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, low: int, high: int) -> Bounds:
        return cls(torch.tensor(low, device="cpu"), torch.tensor(high, device="cpu"))

    @property
    def largest(self) -> Tensor:
        """The largest magnitude."""
        return torch.maximum(self.low.abs(), self.high.abs())


def shifts_of(scale: Tensor, terms: int, fraction: int) -> tuple[Tensor, Tensor]:
    """Left shifts and signs, int8 (T, ...), of scales in units of 2^-fraction.

    Terms below the unit are left out.
    """
    exponents, signs = powers_of_two(scale, terms)
    shifts = exponents.int() + fraction
    signs = torch.where(shifts >= 0, signs, 0).to(torch.int8)
    return torch.where(signs != 0, shifts, 0).to(torch.int8), signs


def factors_of(shifts: Tensor, signs: Tensor) -> Tensor:
    """The integers that shifts multiply by, int64 (...)."""
    return (torch.ones_like(shifts, dtype=torch.int64) << shifts.long()).mul_(signs).sum(0)


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Layers compute in int64, shift by shift, and look at every partial sum."""
    token = _checks.set(True)
    try:
        yield
    finally:
        _checks.reset(token)


def is_checking() -> bool:
    return _checks.get()


def checked(sums: Tensor) -> Tensor:
    """The sums; OverflowError where one does not fit into 32 bits."""
    if sums.numel() and int(sums.abs().max()) > LIMIT:
        raise OverflowError("a sum of an integer network left 32 bits: please report it")
    return sums


class ShiftEpilogue(nn.Module):
    """``y = clamp((sum +-(a << shift) + sum +-(r << shift) + bias) >> fraction, low, high)``.

    What follows an integer sum `a`, per channel: its scale and offset, another integer tensor `r`
    that is added by a scale of its own, and the activation. ``>>`` rounds down, and the bias holds
    half a unit, so that ties round up. The number of fraction bits is the largest with which no
    partial sum leaves 32 bits, whatever the input.

    Attributes:
        shifts, signs: int8 (T, C), of `a`.
        other_shifts, other_signs: int8 (T,), of `r`; (0,) where nothing is added.
        bias: int32 (C,).
        fraction: F, fraction bits.
        low, high: of the result.
        is_bytes: the result is uint8, else int32.
        worst_error: the largest relative error of a scale that matters.

    Args:
        scale, offset: float64 (C,): ``y ~ scale a + offset + zero``.
        bounds: of `a`.
        terms: T, powers of two for a scale.
        low, high: the clamp.
        zero: the result's integer for zero. What a scale is off by turns around it, for that is
            where activations bend.
        other: scale, zero point and bounds of `r`, which adds ``scale (r - zero)``.

    Raises:
        AdderizeError: 32 bits do not hold the sums even without fraction bits.
    """

    shifts: Tensor
    signs: Tensor
    other_shifts: Tensor
    other_signs: Tensor
    bias: Tensor

    def __init__(
        self,
        scale: Tensor,
        offset: Tensor,
        bounds: Bounds,
        *,
        terms: int,
        low: int,
        high: int,
        zero: int = 0,
        other: tuple[float, float, Bounds] | None = None,
    ) -> None:
        super().__init__()
        self.low, self.high = max(low, -LIMIT), min(high, LIMIT)
        self.is_bytes = low >= 0 and high <= 255
        other_scale, other_zero, other_bounds = other or (0.0, 0.0, Bounds.of(0, 0))
        added_scale = torch.tensor([other_scale], dtype=torch.float64, device="cpu")
        for fraction in range(MOST_FRACTION_BITS, -1, -1):
            own = shifts_of(scale, terms, fraction)
            added = shifts_of(added_scale, terms if other else 1, fraction)
            unit = 2.0**-fraction
            ratio = torch.where(scale != 0, factors_of(*own) * unit / scale, 1.0)
            real = offset * ratio + zero - factors_of(*added) * unit * other_zero
            bias = (real / unit).round() + (2**fraction >> 1)
            total = bounds.largest.double() * factors_of(own[0], own[1].abs()) + bias.abs()
            total = total + other_bounds.largest * factors_of(added[0], added[1].abs())
            if max(int(own[0].max()), int(added[0].max())) < 32 and float(total.max()) <= LIMIT:
                break
        else:
            raise AdderizeError(
                f"a scale of {float(scale.abs().max()):.3g} makes sums of up to "
                f"{int(bounds.largest.max())} too large for 32 bits"
            )
        self.fraction, self.terms = fraction, terms
        errors = (ratio - 1).abs()[scale.abs() * bounds.largest >= 0.5]
        if other and abs(other_scale) * int(other_bounds.largest) >= 0.5:
            error = (factors_of(*added) * unit / other_scale - 1).abs()
            errors = torch.cat([errors, error.reshape(-1)])
        self.worst_error = float(errors.max()) if errors.numel() else 0.0
        self.register_buffer("shifts", own[0])
        self.register_buffer("signs", own[1])
        self.register_buffer("other_shifts", added[0][:, 0] if other else added[0][:0, 0])
        self.register_buffer("other_signs", added[1][:, 0] if other else added[1][:0, 0])
        self.register_buffer("bias", bias.to(torch.int32))

    def forward(self, sums: Tensor, other: Tensor | None = None, dim: int = 1) -> Tensor:
        """
        Args:
            sums: uint8 or int32, channels in dimension `dim` where there are several.
            other: uint8 or int32, of the same shape.
        """
        around = [1] * sums.dim()
        around[dim] = -1
        total = (self._by_shifts if is_checking() else self._by_factors)(sums, other, around)
        total = (total >> self.fraction).clamp_(self.low, self.high)
        return total.to(torch.uint8 if self.is_bytes else torch.int32)

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

    def extra_repr(self) -> str:
        return f"terms={self.terms}, fraction={self.fraction}, low={self.low}, high={self.high}"
