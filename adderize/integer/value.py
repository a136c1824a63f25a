"""What the integers of a tensor stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adderize.integer.fixed_point import LIMIT, Bounds, dropped
from adderize.quantize.qparams import QParams


@dataclass(frozen=True)
class Value:
    """What the integers q of a tensor stand for: ``scale (q - zero)``.

    Attributes:
        scale, zero: float64, one value, or (C,) for the image.
        bounds: of q.
        is_bytes: uint8, else int32.
    """

    scale: Tensor
    zero: Tensor
    bounds: Bounds
    is_bytes: bool = False

    @classmethod
    def of_bytes(cls, qparams: QParams) -> Value:
        return cls(
            number(qparams.scale), number(qparams.zero_point), Bounds.of(0, qparams.levels), True
        )

    @property
    def real(self) -> float:
        """The largest magnitude that it stands for."""
        ends = torch.stack([self.bounds.low - self.zero, self.bounds.high - self.zero])
        return float((ends.abs() * self.scale).max())

    def narrowed(self, drop: int) -> Value:
        """Without so many low bits, rounded."""
        if not drop:
            return self
        unit, bounds = 2.0**drop, Bounds(*(dropped(end, drop).long() for end in self.bounds))
        return Value(self.scale * unit, self.zero / unit, bounds)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def nearest_integer(value: float) -> int:
    """Of infinities the ends of 32 bits."""
    return round(max(min(value, float(LIMIT)), -float(LIMIT)))
