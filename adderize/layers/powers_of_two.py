"""Numbers as sums of a few signed powers of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adderize.errors import AdderizeError

_LOWEST, _HIGHEST = -126, 126


def check_terms(terms: int) -> None:
    if type(terms) is not int or not 1 <= terms <= 24:
        raise AdderizeError(f"terms is {terms!r}; expected a number of powers of two from 1 to 24")


def powers_of_two(values: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Exponents and signs of the nearest sums of signed powers of two.

    Args:
        values: any shape; rounded to float32 first, so that every sum is exact in float32.
        terms: T, how many powers of two a value may take, 1 to 24.

    Returns:
        exponents and signs, int8 (T, \\*values.shape); the sign of a term that a value does not
        need is 0. Values below 2^-126 are zero.

    Raises:
        AdderizeError: values that are not finite, or of 2^126 and more; terms out of range.
    """
    check_terms(terms)
    rest = values.detach().float()
    if not bool(rest.isfinite().all()) or bool((rest.abs() >= 2.0**_HIGHEST).any()):
        raise AdderizeError(
            f"a scale is {worst_of(rest)}; expected numbers below 2^{_HIGHEST}: look at the norms' "
            "statistics (adderize inspect)"
        )
    exponents, signs = [], []
    for _ in range(terms):
        mantissa, exponent = torch.frexp(rest)
        # The mantissa lies in [1/2, 1): the nearer end is 1/2 up to 3/4.
        exponent = exponent - (mantissa.abs() <= 0.75).int()
        sign = rest.sign() * (exponent >= _LOWEST)
        exponent = torch.where(sign == 0, 0, exponent)
        rest = rest - sum_of_powers(exponent.unsqueeze(0), sign.unsqueeze(0))
        exponents.append(exponent.to(torch.int8))
        signs.append(sign.to(torch.int8))
    return torch.stack(exponents), torch.stack(signs)


def rounded_to_powers(values: Tensor, terms: int) -> Tensor:
    """The sums of :func:`powers_of_two`, float32 of the values' shape."""
    return sum_of_powers(*powers_of_two(values, terms))


def rounded_number(value: float, terms: int) -> float:
    """The nearest sum of signed powers of two for one finite number, without a tensor."""
    total = 0.0
    for _ in range(terms):
        mantissa, exponent = math.frexp(value - total)
        if mantissa:
            nearest = math.ldexp(1.0, exponent - (abs(mantissa) <= 0.75))
            total += math.copysign(nearest, mantissa)
    return total


def worst_of(values: Tensor) -> float:
    return float(values.flatten()[values.abs().nan_to_num(torch.inf, torch.inf).argmax()])


def sum_of_powers(exponents: Tensor, signs: Tensor) -> Tensor:
    """The sums over the first dimension, float32, exact: powers made from their bits."""
    powers = ((exponents.int() + 127) << 23).view(torch.float32)
    return (powers * signs).sum(0)
