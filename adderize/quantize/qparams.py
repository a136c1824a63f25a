"""Scale, zero point and bits of tensors of bytes, and filters clamped to them, distances kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from adderize.errors import AdderizeError
from adderize.ops.bytes import to_bytes


@dataclass(frozen=True)
class QParams:
    """The values ``scale * (q - zero_point)`` for q in 0 .. 2^bits - 1.

    ``zero_point`` is an integer whatever the range, so zero is represented exactly. Where the range
    leaves zero out, it is not a value of q itself: it lies below 0 or above 2^bits - 1.
    """

    scale: float
    zero_point: int
    bits: int

    @property
    def levels(self) -> int:
        """The largest q."""
        return int(2**self.bits - 1)

    @property
    def low(self) -> float:
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        return (self.levels - self.zero_point) * self.scale

    @classmethod
    def covering(cls, low: float, high: float, bits: int, *, with_zero: bool) -> QParams:
        """The smallest scale that covers low to high; the ends may move by half a step.

        Args:
            low, high: the range, finite. A range of one value gets the width of that value, or 1.
            bits: 2 to 8.
            with_zero: extend the range so that zero is a value of q: what zero padding needs.
        """
        if with_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        levels = 2**bits - 1
        width = high - low
        if width <= 1e-6 * max(abs(low), abs(high)):
            width = max(abs(low), abs(high)) or 1.0
        scale = width / levels
        return cls(scale, round(-low / scale), bits)

    def nearest(self, value: float) -> int:
        """The q nearest to a value; infinities and values outside give the ends."""
        if math.isinf(value):
            return 0 if value < 0 else self.levels
        return min(max(round(value / self.scale) + self.zero_point, 0), self.levels)

    def to_bytes(self, values: Tensor) -> Tensor:
        """The nearest q of every value, uint8."""
        return quantize_bytes(values, self.scale, self.zero_point, self.levels)

    def to_float(self, q: Tensor) -> Tensor:
        """The values of bytes, float32."""
        return dequantize_bytes(q, self.scale, self.zero_point)


def quantize_bytes(values: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """``clamp(round(values / scale) + zero_point, 0, levels)`` as uint8, halves to even, NaN to 0.

    Args:
        values: any shape, float32 or float64 (half precision is read as float32).

    Raises:
        AdderizeError: values of another dtype.
    """
    if has_torch_function_unary(values):  # torch.fx traces a network anew that was pickled
        return handle_torch_function(quantize_bytes, (values,), values, scale, zero_point, levels)
    if not values.is_floating_point():
        raise AdderizeError(
            f"the input of a quantized layer has dtype {values.dtype}; expected the floating-point "
            "values that the float model takes"
        )
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return to_bytes(values, scale, zero_point, levels)


def dequantize_bytes(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``scale * (q - zero_point)`` as float32."""
    if has_torch_function_unary(q):
        return handle_torch_function(dequantize_bytes, (q,), q, scale, zero_point)
    return (q.to(torch.float32) - zero_point) * scale


class ByteFilters(NamedTuple):
    """Filters as bytes.

    Attributes:
        weight: uint8, the filters' shape.
        constant: float64 (Cout,), what clamping took from each filter's distances.
        clamped: (), the share of the values that lay outside the range.
    """

    weight: Tensor
    constant: Tensor
    clamped: Tensor


def quantize_filters(weight: Tensor, qparams: QParams, bits: int | None = None) -> ByteFilters:
    """Clamp filters to a range, exactly, and round them.

    For every x in [low, high], ``|x - w| = (w - high) + |x - high|`` where w > high, and likewise
    below (lossless clamping for AdderNet, NeurIPS 2022): with the clamped filter v,
    ``sum |x - w| = sum |x - v| + constant`` with ``constant = sum |w - v|``. Padded taps too, where
    zero lies in the range.

    Args:
        weight: (Cout, ...), finite floats.
        bits: where fewer than those of the range: the filters are multiples of a power of two, and
            clamped to the highest of 2^bits of them: exactly so for inputs that are below it, too.
    """
    dropped = 0 if bits is None else max(qparams.bits - bits, 0)
    step, levels = 1 << dropped, qparams.levels >> dropped
    w = weight.detach().double()
    v = w.clamp(qparams.low, (levels * step - qparams.zero_point) * qparams.scale)
    q = (v / qparams.scale + qparams.zero_point).div_(step).round_().clamp_(0, levels).mul_(step)
    return ByteFilters(
        q.to(torch.uint8),
        (w - v).abs().flatten(1).sum(1),
        (w != v).double().mean(),
    )
