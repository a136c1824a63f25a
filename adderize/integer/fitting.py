"""Scales and weights as shifts, with the most fraction bits that 32 bits provably hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.integer.fixed_point import (
    LIMIT,
    MOST_FRACTION_BITS,
    Bounds,
    ProductSums,
    factors_of,
    shifts_of,
    without_small_terms,
)
from adderize.integer.program import Setting
from adderize.layers.powers_of_two import powers_of_two

# What a kept layer's weights may lose beside the rounding to a few powers of two, relative, as a
# root mean square.
_NEGLIGIBLE = 2.0**-10


@dataclass(frozen=True)
class Fitted:
    """Settings and tensors of an instruction.

    Attributes:
        settings, tensors: as :mod:`adderize.integer.program` describes them.
        worst_error: the largest relative error of a scale or weight that matters.
        bounds: of the result.
    """

    settings: dict[str, Setting]
    tensors: dict[str, Tensor]
    worst_error: float
    bounds: Bounds


def fit_epilogue(
    scale: Tensor,
    offset: Tensor,
    bounds: Bounds,
    *,
    terms: int,
    low: int,
    high: int,
    zero: float = 0,
    about: float | None = None,
    other: tuple[float, float, Bounds] | None = None,
) -> Fitted:
    """The epilogue that comes nearest to ``scale a + offset + zero``, clamped.

    The number of fraction bits is the largest with which no partial sum leaves 32 bits, whatever
    the input. The bias holds half a unit, so that ties round up.

    Args:
        scale, offset: float64 (C,).
        bounds: of `a`.
        terms: T, powers of two for a scale.
        low, high: the clamp.
        zero: the result's integer for zero, or what lies between two.
        about: what a scale is off by turns around this value of ``scale a + offset + zero``, or the
            nearest that `a` reaches; by default zero, for that is where activations bend.
        other: scale, zero point and bounds of `r`, which adds ``scale (r - zero)``. What its scale
            is off by turns around its :func:`centre`.

    Raises:
        AdderizeError: 32 bits do not hold the sums even without fraction bits.
    """
    low, high = max(low, -LIMIT), min(high, LIMIT)
    about = zero if about is None else about
    other_scale, other_zero, other_bounds = other or (0.0, 0.0, Bounds.of(0, 0))
    other_centre = centre(other_zero, other_bounds)
    other_value = other_scale * (other_centre - other_zero)
    added_scale = torch.tensor([other_scale], dtype=torch.float64, device="cpu")
    held = ((about - zero - offset) / scale).nan_to_num().clamp(bounds.low, bounds.high)
    for fraction in range(MOST_FRACTION_BITS, -1, -1):
        own = shifts_of(scale, terms, fraction)
        added = shifts_of(added_scale, terms, fraction)
        unit = 2.0**-fraction
        ratio = torch.where(scale != 0, factors_of(*own) * unit / scale, 1.0)
        real = offset + zero + (1 - ratio) * scale * held
        real = real + other_value - factors_of(*added) * unit * other_centre
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
    errors = (ratio - 1).abs()[scale.abs() * bounds.largest >= 0.5]
    tensors = {"shifts": own[0], "signs": own[1], "bias": bias.to(torch.int32)}
    if other:
        tensors |= {"other_shifts": added[0][:, 0], "other_signs": added[1][:, 0]}
        if abs(other_scale) * int(other_bounds.largest) >= 0.5:
            error = (factors_of(*added) * unit / other_scale - 1).abs()
            errors = torch.cat([errors, error.reshape(-1)])
    worst = float(errors.max()) if errors.numel() else 0.0
    settings: dict[str, Setting] = {"fraction": fraction, "low": low, "high": high}
    return Fitted(settings, tensors, worst, Bounds.of(low, high))


def centre(zero: float, bounds: Bounds) -> float:
    """The integer around which a tensor's values lie: that for zero if it is one of them, else the
    middle between its bounds."""
    low, high = float(bounds.low.min()), float(bounds.high.max())
    return zero if low <= zero < high else (low + high) / 2


def fit_product(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    zero: Tensor,
    bounds: Bounds,
    *,
    usual: float,
    base: float,
    groups: int,
    pads_zeros: bool,
    terms: int,
) -> Fitted:
    """A kept convolution or linear layer whose every product is a few shifts.

    ``t = sum_k sum +-(x_k << shift) + bias`` per output, in units of ``base 2^-fraction``. Terms
    below the unit shift to the right: the sums need 32 bits, but inputs and weights do not share
    them.

    Args:
        weight: (Cout, Cin/groups, kh, kw) or (out_features, in_features).
        bias: (Cout,).
        scale: float64, real value of the input's unit, one or (Cin,).
        zero: float64 (Cin,) or one, the input's integer for zero.
        bounds: of the input.
        usual: the inputs' usual deviation, in their unit.
        base: real value of 2^fraction output units.
        pads_zeros: zeros may come around the image.
        terms: T, powers of two for each weight.

    Returns:
        the tensors of a ``shift_conv`` or ``shift_linear``, and its `least` and `fraction`; the
        bounds are half the range of 32 bits at most.

    Raises:
        AdderizeError: 32 bits do not hold the sums even without fraction bits.
    """
    weight = weight.detach().double()
    real_bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    low, high = int(bounds.low.min()), int(bounds.high.max())
    signed = low < 0
    pad = zero.round()
    if pads_zeros:
        low, high = min(low, int(pad.min())), max(high, int(pad.max()))
    largest, by_input = max(-low, high), _Spread(weight, groups)
    real, zeros = weight * by_input(scale) / base, by_input(zero)
    exponents, signs = powers_of_two(real, terms)
    finest = _finest(exponents, signs)
    for fraction in range(_most_fraction_bits(real, largest), -1, -1):
        least = min(max(finest + fraction, -largest.bit_length(), -31), 0)
        shifts, kept = without_small_terms(exponents.int() + fraction, signs, least)
        factors = torch.ldexp(kept.double(), shifts.int()).sum(0)
        lost = (kept * _usually_lost(shifts, usual, signed=signed)).sum(0)
        offset = real_bias / base * 2.0**fraction + (lost - factors * zeros).flatten(1).sum(1)
        sums = ProductSums.of(shifts, kept, offset.round(), low, high)
        result = Bounds(sums.low.min().floor().long(), sums.high.max().ceil().long())
        held = float(sums.partial.max()) <= LIMIT and int(result.largest) <= LIMIT // 2
        if held and int(shifts.max()) < 32:
            break
    else:
        raise AdderizeError(
            f"weights of up to {float(weight.abs().max()):.3g} of {weight[0].numel()} inputs up to "
            f"{largest} make sums which 32 bits do not hold"
        )
    errors = (factors * 2.0**-fraction / real - 1).abs()[real.abs() >= 2.0 ** (least - fraction)]
    worst = float(errors.max()) if errors.numel() else 0.0
    tensors = {"shifts": shifts, "signs": kept, "bias": offset.round().to(torch.int32)}
    if weight.dim() == 4:
        tensors["pad"] = pad.to(torch.int32).expand(weight.shape[1] * groups).clone()
    return Fitted({"least": least, "fraction": fraction}, tensors, worst, result)


def _usually_lost(shifts: Tensor, usual: float, *, signed: bool) -> Tensor:
    """The mean of what shifts to the right lose, as they round down, in units of the result.

    Integers of both signs lose half a unit, less half of the last bit that they have. Of others
    about half are zeros, and none loses more than it is.
    """
    factors = torch.ldexp(torch.ones_like(shifts, dtype=torch.float64), shifts.int())
    lost = (1 - factors).clamp(min=0) / 2
    return lost if signed else torch.minimum(lost, factors * usual) / 2


def _finest(exponents: Tensor, signs: Tensor) -> int:
    """The largest exponent with which all smaller terms together hardly change the weights."""
    terms = torch.ldexp(signs.double(), exponents.int())
    allowed = float(terms.sum(0).square().sum()) * _NEGLIGIBLE**2
    finest = int(exponents.max())
    while float((terms * (exponents < finest)).sum(0).square().sum()) > allowed:
        finest -= 1
    return finest


def _most_fraction_bits(real: Tensor, largest: int) -> int:
    """With which the sums might still have 32 bits: two more than by their largest terms."""
    total = float(real.abs().flatten(1).sum(1).max()) * largest
    spare = math.log2(LIMIT / total) if total else math.inf
    return math.floor(min(spare + 2, MOST_FRACTION_BITS))


class _Spread:
    """Gives each weight the value of the input channel that it meets."""

    def __init__(self, weight: Tensor, groups: int) -> None:
        self._weight, self._groups = weight, groups

    def __call__(self, values: Tensor) -> Any:
        """(Cin,) or one value -> the weight's shape."""
        outputs, fan, *taps = self._weight.shape
        ones = (1,) * len(taps)
        spread = values.expand(fan * self._groups).view(self._groups, 1, -1, *ones)
        return spread.expand(-1, outputs // self._groups, -1, *ones).flatten(0, 1)
