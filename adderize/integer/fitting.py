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
    factors_of,
    shifts_of,
)
from adderize.integer.program import Setting

# The bits of the input of a kept layer, at most: its weights need the others.
INPUT_BITS = 16
# How far below its bounds, which hold for every image, an input usually is: behind adders of
# thousands of taps.
_HEADROOM = 1024


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
    base: float,
    groups: int,
    pads_zeros: bool,
    terms: int,
) -> Fitted:
    """A kept convolution or linear layer whose every product is a few shifts.

    ``t = sum_k sum +-(x_k << shift) + bias`` per output, in units of ``base 2^-fraction``. Input
    and weights share 32 bits: the input loses more than it has to where that halves the error at
    least, as of classifiers of thousands of inputs.

    Args:
        weight: (Cout, Cin/groups, kh, kw) or (out_features, in_features).
        bias: (Cout,).
        scale: float64, real value of the input's unit, one or (Cin,).
        zero: float64 (Cin,) or one, the input's integer for zero.
        bounds: of the input.
        base: real value of 2^fraction output units.
        pads_zeros: zeros may come around the image.
        terms: T, powers of two for each weight.

    Returns:
        the tensors of a ``shift_conv`` or ``shift_linear``, and its `drop` and `fraction`; the
        bounds are half the range of 32 bits at most.

    Raises:
        AdderizeError: 32 bits do not hold the sums even without fraction bits.
    """
    weight = weight.detach().double()
    real_bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    largest = int(bounds.largest.max())
    if pads_zeros:
        largest = max(largest, math.ceil(zero.abs().max()))
    least = max(largest.bit_length() - INPUT_BITS, 0)
    first = best = None
    for drop in range(least, least + INPUT_BITS // 2 + 1):
        form = _Product.of(weight, real_bias, scale, zero, largest, drop, base, groups, terms)
        first, best = first or form, min(best or form, form, key=lambda product: product.error)
        if form.error > best.error:
            break
    assert first is not None and best is not None
    form = best if first.error > 2 * best.error else first
    if math.isinf(form.error):
        raise AdderizeError(
            f"weights of up to {float(weight.abs().max()):.3g} of {weight[0].numel()} inputs up to "
            f"{largest} make sums which 32 bits do not hold"
        )
    return form.fitted(weight, zero, groups)


@dataclass(frozen=True)
class _Product:
    """Weights as shifts, for inputs that lose some bits.

    Attributes:
        drop, fraction, shifts, signs: as :mod:`adderize.integer.program` describes them.
        bias: float64, to be rounded.
        worst_error: of a weight that is not below the unit.
        error: relative, of a usual result: what rounds the inputs, and what rounds the weights, as
            root mean squares; infinite where 32 bits do not hold the sums.
        most: what no sum exceeds.
    """

    drop: int
    fraction: int
    shifts: Tensor
    signs: Tensor
    bias: Tensor
    worst_error: float
    error: float
    most: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        zero: Tensor,
        largest: int,
        drop: int,
        base: float,
        groups: int,
        terms: int,
    ) -> _Product:
        unit = 2.0**drop
        by_input = _Spread(weight, groups)
        real = weight * by_input(scale * unit) / base
        zeros = by_input(zero / unit)
        for fraction in range(MOST_FRACTION_BITS, -1, -1):
            shifts, signs = shifts_of(real, terms, fraction)
            factors = factors_of(shifts, signs)
            sizes = factors_of(shifts, signs.abs())
            offset = bias / base * 2.0**fraction - (factors * zeros).flatten(1).sum(1)
            total = (largest / unit + 1) * sizes.flatten(1).sum(1) + offset.abs() + 1
            if int(shifts.max()) < 32 and float(total.max()) <= LIMIT // 2:
                break
        else:
            return cls(drop, 0, shifts, signs, offset, 0.0, math.inf, 0)
        held = factors / 2.0**fraction
        errors = (held / real - 1).abs()[real.abs() >= 2.0**-fraction]
        worst = float(errors.max()) if errors.numel() else 0.0
        of_weights = float(((held - real).square().sum() / real.square().sum()).nan_to_num(0))
        of_inputs = (_HEADROOM * unit / max(largest, 1)) ** 2 / 12 if drop else 0.0
        error = math.sqrt(of_weights + of_inputs)
        return cls(
            drop, fraction, shifts, signs, offset, worst, error, math.ceil(float(total.max()))
        )

    def fitted(self, weight: Tensor, zero: Tensor, groups: int) -> Fitted:
        bias = self.bias.round().to(torch.int32)
        tensors = {"shifts": self.shifts, "signs": self.signs, "bias": bias}
        if weight.dim() == 4:
            pad = (zero / 2.0**self.drop).round().to(torch.int32)
            tensors["pad"] = pad.expand(weight.shape[1] * groups).clone()
        settings: dict[str, Setting] = {"drop": self.drop, "fraction": self.fraction}
        return Fitted(settings, tensors, self.worst_error, Bounds.of(-self.most, self.most))


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
