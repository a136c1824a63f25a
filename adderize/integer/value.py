"""What the integers of a tensor stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adderize.integer.fixed_point import LIMIT, Bounds, dropped
from adderize.integer.precision import Precision


@dataclass(frozen=True)
class Value:
    """What the integers q of a tensor stand for: ``scale (q - zero)``.

    Attributes:
        scale, zero: float64, one value, or (C,) for the image.
        bounds: of q.
        precision: how much of its usual values they keep.
        is_bytes: uint8, else int32.
    """

    scale: Tensor
    zero: Tensor
    bounds: Bounds
    precision: Precision
    is_bytes: bool = False

    @classmethod
    def of_bytes(cls, scale: Tensor, zero: Tensor, levels: int) -> Value:
        precision = Precision.of_range(float(scale.mean()) * levels)
        return cls(scale, zero, Bounds.of(0, levels), precision, True)

    @property
    def real(self) -> float:
        """The largest magnitude that it stands for."""
        ends = torch.stack([self.bounds.low - self.zero, self.bounds.high - self.zero])
        return float((ends.abs() * self.scale).max())

    @property
    def reach(self) -> float:
        """The largest magnitude of an integer and of its zero together, in real units: scaled sums
        hold them apart."""
        return float(((self.bounds.largest + self.zero.abs()) * self.scale).max())

    def narrowed(self, drop: int) -> Value:
        """Without so many low bits, rounded."""
        if not drop:
            return self
        unit, bounds = 2.0**drop, Bounds(*(dropped(end, drop).long() for end in self.bounds))
        return replace(self, scale=self.scale * unit, zero=self.zero / unit, bounds=bounds)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def nearest_integer(value: float) -> int:
    """Of infinities the ends of 32 bits."""
    return round(max(min(value, float(LIMIT)), -float(LIMIT)))
