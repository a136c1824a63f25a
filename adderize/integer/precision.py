"""How much of a tensor's usual values the rounding to integers leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from adderize.errors import AdderizeError

# Of the width of its range, which is that of the calibration data, a tensor's usual deviation.
_USUAL_OF_RANGE = 1 / 12
# Of the largest factor of a channel, that of a dead one.
_DEAD = 2.0**-10
# The most that rounding may take of usual values.
_MOST_LOST = 0.25


@dataclass(frozen=True)
class Precision:
    """Estimates, as root mean squares of real values, where bounds hold for every image.

    They take the terms of sums for independent.

    Attributes:
        usual: the deviation from the mean.
        error: what rounding adds, that of bytes left out, which is quantize()'s.
        kept: kept layers in a row, without bytes between.
    """

    usual: float
    error: float = 0.0
    kept: int = 0

    @classmethod
    def of_range(cls, width: float) -> Precision:
        """Of bytes that cover a range."""
        return cls(width * _USUAL_OF_RANGE)

    @classmethod
    def of_sum(cls, parts: Sequence[Precision]) -> Precision:
        return cls(
            math.hypot(*(part.usual for part in parts)),
            math.hypot(*(part.error for part in parts)),
            max(part.kept for part in parts),
        )

    def scaled(self, factor: float) -> Precision:
        return Precision(factor * self.usual, factor * self.error, self.kept)

    def rectified(self) -> Precision:
        """Behind a ReLU: the deviation of half a normal distribution, and half of the errors."""
        deviation = math.sqrt((1 - 1 / math.pi) / 2)
        return replace(self, usual=deviation * self.usual, error=self.error / math.sqrt(2))

    def within(self, width: float) -> Precision:
        """Clamped to a range, of which half is the largest deviation."""
        return self.scaled(width / 2 / self.usual) if 2 * self.usual > width else self

    def averaged(self, count: int) -> Precision:
        """A mean of values between alike and independent, with independent errors."""
        return replace(self, usual=self.usual * count**-0.25, error=self.error * count**-0.5)

    def rounded(self, unit: float, times: float = 1.0) -> Precision:
        """After so many roundings to a unit, which are added up."""
        return replace(self, error=math.hypot(self.error, unit * math.sqrt(times / 12)))

    def check(self) -> None:
        """
        Raises:
            AdderizeError: rounding leaves too little. Of constants, as of dead layers, nothing is
                lost.
        """
        if self.usual and self.error > _MOST_LOST * self.usual:
            units, least = (
                ratio / math.sqrt(12) for ratio in (self.usual / self.error, 1 / _MOST_LOST)
            )
            raise AdderizeError(
                f"usual values are about {units:.2g} units; expected {least:.2g}. 32 bits hold the "
                "largest value of any image, which norms, sums and kept convolutions or linear "
                f"layers ({self.kept} in a row here) take further from the usual ones. Convert "
                "layers between them to adders, whose inputs are bytes; a network from an earlier "
                "version lacks the ranges of kept layers' inputs, which quantize() notes now: "
                "quantize it anew"
            )


def usual_of(sizes: Tensor) -> float:
    """The root mean square of channels that are not dead. Those that a norm scales up because they
    hardly ever vary count as a few times the median."""
    sizes = sizes.double().abs()
    sizes = sizes[sizes >= sizes.max() * _DEAD]
    return float(sizes.clamp(max=4 * float(sizes.median())).square().mean().sqrt())
