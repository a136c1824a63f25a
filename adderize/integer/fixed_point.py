"""Scales as shifts of integers, with proof that 32 bits hold every sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.layers.powers_of_two import powers_of_two

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
    return without_small_terms(exponents.int() + fraction, signs, 0)


def without_small_terms(shifts: Tensor, signs: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Shifts and signs, int8, without the terms whose shifts are below the least."""
    signs = torch.where(shifts >= least, signs, 0).to(torch.int8)
    return torch.where(signs != 0, shifts, 0).to(torch.int8), signs


def factors_of(shifts: Tensor, signs: Tensor) -> Tensor:
    """The integers that shifts multiply by, int64 (...)."""
    return (torch.ones_like(shifts, dtype=torch.int64) << shifts.long()).mul_(signs).sum(0)


class ProductSums(NamedTuple):
    """What sums over filters' terms reach, whatever the inputs, float64 (Cout,).

    Attributes:
        partial: the largest magnitude of a sum of some terms and the bias, in any order.
        low, high: of the whole sum.
    """

    partial: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(
        cls, shifts: Tensor, signs: Tensor, bias: Tensor, low: float, high: float
    ) -> ProductSums:
        """
        Args:
            shifts, signs: (T, Cout, ...). Shifts below 0 are to the right and round down.
            bias: (Cout,).
            low, high: of the inputs.
        """
        bias = bias.double()
        plus, minus, below, above = torch.zeros(4, len(bias), dtype=torch.float64, device="cpu")
        for shift, sign in zip(shifts.flatten(2), signs.flatten(2), strict=True):
            factors = torch.ldexp(sign.double(), shift.int())
            plus += factors.clamp(min=0).sum(1)
            minus -= factors.clamp(max=0).sum(1)
            rounded = sign * (shift < 0)
            below += (rounded > 0).sum(1)
            above += (rounded < 0).sum(1)
        least, most = min(low, 0), max(high, 0)
        upper = most * plus - least * minus + above + bias.clamp(min=0)
        lower = least * plus - most * minus - below + bias.clamp(max=0)
        return cls(
            torch.maximum(upper, -lower),
            low * plus - high * minus - below + bias,
            high * plus - low * minus + above + bias,
        )


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Layers compute in int64, shift by shift, and look at every partial sum."""
    token = _checks.set(True)
    try:
        yield
    finally:
        _checks.reset(token)


def is_checking() -> bool:
    # torch.export of torch 2.6 reads no context variables.
    return not torch.compiler.is_compiling() and _checks.get()


def checked(sums: Tensor) -> Tensor:
    """The sums; while checking, OverflowError where one does not fit into 32 bits."""
    if is_checking() and sums.numel() and int(sums.abs().max()) > LIMIT:
        raise OverflowError("a sum of an integer network left 32 bits: please report it")
    return sums


def dropped(integers: Tensor, bits: int) -> Tensor:
    """Without their low bits, ties rounded up."""
    if not bits:
        return integers
    return (checked(integers.long() + (1 << bits >> 1)) >> bits).to(torch.int32)
