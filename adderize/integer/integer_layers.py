"""Layers on integers alone: bytes or 32-bit integers in, the same out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.integer.fixed_point import (
    LIMIT,
    MOST_FRACTION_BITS,
    Bounds,
    ShiftEpilogue,
    checked,
    factors_of,
    is_checking,
    shifts_of,
)
from adderize.layers.base import effective_geometry
from adderize.layers.same import same_padding
from adderize.ops.geometry import Geometry
from adderize.quantize.byte_layers import QuantAdderConv2d, QuantAdderLinear


class IntegerAdder(nn.Module):
    """An adder layer: distances of bytes, then shifts.

    Attributes:
        distances: the layer on bytes with a scale of 1 and nothing behind it.
        epilogue: what follows.

    Shape:
        as :class:`adderize.quantize.QuantAdderConv2d` or ``QuantAdderLinear``; uint8, and for
        `other` uint8 or int32 -> uint8 or int32.
    """

    def __init__(self, layer: QuantAdderConv2d | QuantAdderLinear, epilogue: ShiftEpilogue) -> None:
        super().__init__()
        self.distances = copy.deepcopy(layer)
        self.distances.scale.fill_(1)
        self.distances.shift.zero_()
        self.distances.low, self.distances.high = -math.inf, math.inf
        self.distances.output_qparams = self.distances.residual_qparams = None
        self.epilogue = epilogue

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        # A distance is below 2^24, so the float32 that the kernel writes is exact.
        distances = self.distances(input).to(torch.int32)
        dim = -3 if isinstance(self.distances, QuantAdderConv2d) else -1
        result: Tensor = self.epilogue(distances, other, dim=dim)
        return result


def dropped(integers: Tensor, bits: int) -> Tensor:
    """Without their low bits, ties rounded up."""
    if not bits:
        return integers
    return (checked(integers.long() + (1 << bits >> 1)) >> bits).to(torch.int32)


def distance_bounds(layer: QuantAdderConv2d | QuantAdderLinear) -> Bounds:
    """The smallest and the largest distance of each filter, whatever bytes it meets."""
    weight = layer.weight.flatten(1).long()
    farthest = torch.maximum(weight, layer.qparams.levels - weight).sum(1)
    return Bounds(torch.zeros_like(farthest), farthest)


class IntegerProduct(nn.Module):
    """A kept convolution or linear layer: every product a few shifts.

    ``t = sum_k sum +-(x_k << shift) + bias`` per output, in units of ``2^-fraction``.

    Attributes:
        shifts, signs: int8 (T, Cout, Cin/groups, kh, kw), or (T, out_features, in_features).
        bias: int32 (Cout,).
        pad: int32 (Cin,), what surrounds the image.
        drop: bits that the input loses first, rounded, so that 32 bits hold the sums.
        around: padding left, right, top, bottom.
        bounds: of the sums; half the range of 32 bits at most.
        worst_error: the largest relative error of a weight of at least one unit.

    Args:
        layer: a convolution or a linear layer; its geometry and bias count.
        scale: float64, real value of the input's unit, one or (Cin,).
        zero: float64 (Cin,) or one, the input's integer for zero.
        bounds: of the input.
        base: real value of 2^fraction output units.
        image: (H, W) of the input of a convolution.
        terms: T, powers of two for each weight.

    Shape:
        uint8 or int32 -> int32, otherwise as the layer's.

    Raises:
        AdderizeError: 32 bits do not hold the sums even without fraction bits.
    """

    shifts: Tensor
    signs: Tensor
    bias: Tensor
    pad: Tensor

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        scale: Tensor,
        zero: Tensor,
        bounds: Bounds,
        *,
        base: float,
        image: Sequence[int] = (),
        terms: int,
    ) -> None:
        super().__init__()
        weight = layer.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        self._take_geometry(layer, image)
        largest = int(bounds.largest.max())
        if any(self.around) and self.padding_mode == "zeros":
            largest = max(largest, math.ceil(zero.abs().max()))
        self.drop = max(largest.bit_length() - INPUT_BITS, 0)
        unit = 2.0**self.drop
        taps = (1,) * (weight.dim() - 2)
        groups = self.geometry.groups
        fans = weight.shape[1] * groups

        def by_input(values: Tensor) -> Tensor:
            """(fans,) or one value, for each weight."""
            spread = values.expand(fans).view(groups, 1, -1, *taps)
            return spread.expand(-1, len(weight) // groups, -1, *taps).flatten(0, 1)

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
            raise AdderizeError(
                f"weights of up to {float(real.abs().max()):.3g} make sums of up to "
                f"{float(total.max()):.3g}, which 32 bits do not hold"
            )
        self.fraction, self.terms = fraction, terms
        self.bounds = Bounds.of(-math.ceil(total.max()), math.ceil(total.max()))
        errors = (factors / 2.0**fraction / real - 1).abs()[real.abs() >= 2.0**-fraction]
        self.worst_error = float(errors.max()) if errors.numel() else 0.0
        self.register_buffer("shifts", shifts)
        self.register_buffer("signs", signs)
        self.register_buffer("bias", offset.round().to(torch.int32))
        self.register_buffer("pad", (zero / unit).round().to(torch.int32).expand(fans).clone())

    def _take_geometry(self, layer: nn.Conv2d | nn.Linear, image: Sequence[int]) -> None:
        self.is_linear = isinstance(layer, nn.Linear)
        self.geometry, self.around, self.padding_mode = Geometry(), [0, 0, 0, 0], "zeros"
        if isinstance(layer, nn.Linear):
            return
        geometry, around = effective_geometry(layer)
        rows, columns = geometry.padding
        self.around = around or [columns, columns, rows, rows]
        self.padding_mode = layer.padding_mode
        if type(layer).__name__ == "Conv2dSame":
            self.around = same_padding(image, layer.kernel_size, geometry.stride, geometry.dilation)
        self.geometry = geometry._replace(padding=(0, 0))

    def forward(self, input: Tensor) -> Tensor:
        x = dropped(input, self.drop).to(torch.int64 if is_checking() else torch.int32)
        if any(self.around):
            x = self._padded(x)
        # float64 holds every sum exactly: none leaves 32 bits.
        if is_checking():
            parts = zip(self.shifts, self.signs, strict=True)
            sums = sum(
                (self._product(x, factors_of(shift[None], sign[None])) for shift, sign in parts),
                self.bias.double().view(-1, *(1,) * (0 if self.is_linear else 2)),
            )
            return checked(sums.long()).to(torch.int32)
        sums = self._product(x, factors_of(self.shifts, self.signs))
        sums += self.bias.view(-1, *(1,) * (0 if self.is_linear else 2))
        return sums.to(torch.int32)

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            return F.pad(x.double(), self.around, mode=self.padding_mode).to(x.dtype)
        pad = self.pad.view(-1, 1, 1)
        return F.pad(x - pad, self.around) + pad

    def _product(self, x: Tensor, factors: Tensor) -> Tensor:
        if self.is_linear:
            return F.linear(x.double(), factors.double())
        return torch.conv2d(x.double(), factors.double(), None, *self.geometry)

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.shifts.shape[1:]))
        return f"{shape}, terms={self.terms}, fraction={self.fraction}, drop={self.drop}"


INPUT_BITS = 16


class IntegerSum(nn.Module):
    """Sums over windows, for means: the count goes into the scale of what they stand for.

    Attributes:
        window, stride: (rows, columns).
        padding: rows and columns of `pad` around.
        drop: bits that the input and `pad` lose first, rounded.
        bounds: of the sums.

    Shape:
        (N, C, H, W), uint8 or int32 -> (N, C, OH, OW), int32.
    """

    def __init__(
        self,
        bounds: Bounds,
        window: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0, 0),
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.window, self.stride, self.padding = tuple(window), tuple(stride), tuple(padding)
        count, largest = math.prod(window), max(int(bounds.largest.max()), abs(pad))
        self.drop = max((largest * count).bit_length() - 30, 0)
        self.pad = int(dropped(torch.tensor(pad, device="cpu"), self.drop))
        largest = ((largest >> self.drop) + 1) * count
        self.bounds = Bounds.of(-largest, largest)

    def forward(self, input: Tensor) -> Tensor:
        x = dropped(input, self.drop).to(torch.int32)
        rows, columns = self.padding
        x = F.pad(x, [columns, columns, rows, rows], value=self.pad)
        sums = F.avg_pool2d(x.double(), self.window, self.stride, divisor_override=1)
        return sums.round().to(torch.int32)

    def extra_repr(self) -> str:
        return f"window={self.window}, stride={self.stride}, padding={self.padding}"


class IntegerScale(nn.Module):
    """Another scale and zero point: an epilogue by itself, with a second operand or without.

    Attributes:
        drop, other_drop: bits that the operands lose first, rounded.
        dim: of the channels.
    """

    def __init__(
        self, epilogue: ShiftEpilogue, dim: int = 1, drop: int = 0, other_drop: int = 0
    ) -> None:
        super().__init__()
        self.epilogue, self.dim = epilogue, dim
        self.drop, self.other_drop = drop, other_drop

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            other = dropped(other, self.other_drop)
        result: Tensor = self.epilogue(dropped(input, self.drop), other, dim=self.dim)
        return result

    def extra_repr(self) -> str:
        return f"drop={self.drop}, other_drop={self.other_drop}"


class IntegerMaxPool(nn.Module):
    """Max pooling of 32-bit integers, which torch's own does not take.

    Shape:
        (N, C, H, W), int32 -> pooled.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = self.pool(input.double())
        return pooled.to(torch.int32)
