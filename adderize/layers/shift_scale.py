"""Scales and averages whose factor is a sum of a few signed powers of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.layers.powers_of_two import rounded_number
from adderize.layers.shift_add import Shifts


class ShiftAddScale(Shifts):
    """A product with constants, each rounded to a sum of signed powers of two.

    Args:
        values: a number's tensor, or any shape that the input's broadcasts with.
        terms: T, powers of two for each value.

    Shape:
        float32 -> float32, broadcast with the values.
    """

    def __init__(self, values: Tensor, *, terms: int = 3) -> None:
        super().__init__()
        self._hold(values, terms)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.weight

    def extra_repr(self) -> str:
        return f"shape={tuple(self.weight.shape)}, terms={self.terms}"


class ShiftAddLeakyReLU(Shifts):
    """A leaky ReLU whose slopes below zero are sums of signed powers of two.

    Args:
        slopes: one value, or one a channel (PReLU).
        terms: T, powers of two for each slope.

    Shape:
        (N, C, ...), float32 -> the same.
    """

    def __init__(self, slopes: Tensor, *, terms: int = 3) -> None:
        super().__init__()
        self._hold(slopes.reshape(-1), terms)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.weight.numel()}, terms={self.terms}"


def reciprocal(count: int, terms: int) -> float:
    """``1 / count`` as a sum of signed powers of two; 0 for none."""
    return rounded_number(1 / count, terms) if count else 0.0


def count_of(shape: torch.Size, dim: int | Sequence[int] | None) -> int:
    """How many values a mean over dimensions takes together.

    It asks for their sizes alone: that of the batch may be open where a network is exported.
    """
    if dim is None:
        dim = range(len(shape))
    return math.prod(shape[axis] for axis in ([dim] if isinstance(dim, int) else dim))


# Symbolic tracing knows no sizes: it keeps the calls.
torch.fx.wrap("reciprocal")
torch.fx.wrap("count_of")


class ShiftAddMean(nn.Module):
    """A mean over dimensions: a sum, and shifts.

    Args:
        dim: the dimensions; None for all.
        keepdim: keep them with size 1.
        terms: T, powers of two for the reciprocal of the count; one where the count is one itself.

    Shape:
        any, float32 -> without `dim`.
    """

    def __init__(
        self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, *, terms: int = 3
    ) -> None:
        super().__init__()
        self.terms = terms
        self.dim, self.keepdim = dim, keepdim

    def forward(self, input: Tensor) -> Tensor:
        sums = input.sum(self.dim, keepdim=self.keepdim)
        return sums * reciprocal(count_of(input.shape, self.dim), self.terms)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, keepdim={self.keepdim}, terms={self.terms}"


def _window_sums(
    input: Tensor,
    window: tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    if torch.onnx.is_in_onnx_export():  # torch's own translation leaves out the divisor
        return F.avg_pool2d(input, window, stride, padding) * (window[0] * window[1])
    return F.avg_pool2d(input, window, stride, padding, divisor_override=1)


class ShiftAddAvgPool2d(nn.Module):
    """``torch.nn.AvgPool2d`` as sums and shifts.

    Args:
        kernel_size, stride, padding: as there; zeros of the padding count.
        terms: T, powers of two for the reciprocal of the window's size.

    Shape:
        (N, C, H, W) or (C, H, W), float32 -> pooled.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        terms: int = 3,
    ) -> None:
        super().__init__()
        self.terms = terms
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, input: Tensor) -> Tensor:
        size = self.kernel_size
        rows, columns = size if isinstance(size, Sequence) else (size, size)
        sums = _window_sums(input, (rows, columns), self.stride, self.padding)
        return sums * reciprocal(rows * columns, self.terms)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"terms={self.terms}"
        )


class ShiftAddAdaptiveAvgPool2d(nn.Module):
    """``torch.nn.AdaptiveAvgPool2d`` as sums and shifts, where all windows are alike.

    Args:
        output_size: as there.
        terms: T, powers of two for the reciprocal of the window's size.

    Shape:
        (N, C, H, W) or (C, H, W), float32 -> pooled.

    Raises:
        AdderizeError: an image that the output's size does not divide.
    """

    def __init__(self, output_size: int | Sequence[int | None] | None, *, terms: int = 3) -> None:
        super().__init__()
        self.terms = terms
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        wanted = self.output_size
        pair = wanted if isinstance(wanted, Sequence) else (wanted, wanted)
        image = input.shape[-2:]
        rows, columns = (
            side if size is None else size for size, side in zip(pair, image, strict=True)
        )
        if image[0] % rows or image[1] % columns:
            raise AdderizeError(
                f"an image of {tuple(image)} has windows of several sizes for an output of "
                f"{(rows, columns)}, and each needs a scale of its own: use a size that it divides"
            )
        window = (image[0] // rows, image[1] // columns)
        sums = _window_sums(input, window)
        return sums * reciprocal(window[0] * window[1], self.terms)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, terms={self.terms}"
