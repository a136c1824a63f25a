"""Scales as shifts of integers, with proof that 32 bits hold every sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

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
