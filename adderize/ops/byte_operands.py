"""What the ops on bytes accept, and their arguments as the backends take them: in records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops.formats import is_nhwc
from adderize.ops.geometry import Geometry, Pair, Shape, as_record
from adderize.ops.packing import check_packed

MOST_TAPS = (2**31 - 1) // 255  # an int32 holds the largest distance of so many


class Requantization(NamedTuple):
    """How an integer distance becomes a byte or a float, see `reference/bytes.py`."""

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    residual_scale: float
    low: float
    high: float
    float_output: bool

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.float32 if self.float_output else torch.uint8


class Shifting(NamedTuple):
    """How an integer distance becomes another integer, see `reference/bytes.py`."""

    factor: Tensor
    bias: Tensor
    residual: Tensor | None
    residual_factor: int
    fraction: int
    low: int
    high: int
    int32_output: bool

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.int32 if self.int32_output else torch.uint8


class Window(NamedTuple):
    """A pooling window and how it moves."""

    kernel_size: Pair
    geometry: Geometry
    ceil_mode: bool

    def output_size(self, image: Sequence[int]) -> Pair:
        """Rows and columns of windows over an image (H, W)."""
        height, width = self.geometry.output_size(image, self.kernel_size)
        if not self.ceil_mode:
            return height, width
        return height + self._further(0, height, image), width + self._further(1, width, image)

    def _further(self, axis: int, whole: int, image: Sequence[int]) -> bool:
        """Whether a window follows that is cut off by the image's end."""
        stride, padding = self.geometry.stride[axis], self.geometry.padding[axis]
        reach = (self.kernel_size[axis] - 1) * self.geometry.dilation[axis]
        rest = (image[axis] + 2 * padding - reach - 1) % stride
        # torch leaves out a window that would start beyond the image.
        return rest > 0 and whole * stride < image[axis] + padding


def accept_bytes(
    input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, int, Geometry, Requantization]:
    """Check a call of ``adder_conv2d_u8``."""
    return input, weight, *_checked_bytes(input, weight, weight.shape, arguments)


def accept_packed(
    input: Tensor, packed: Tensor, weight_shape: Sequence[int], *arguments: Any
) -> tuple[Tensor, Tensor, Shape, int, Geometry, Requantization]:
    """As :func:`accept_bytes`, for packed filters, whose shape is an argument."""
    checked = _checked_bytes(input, packed, weight_shape, arguments)
    check_packed(packed, weight_shape, checked[1].groups)
    return input, packed, tuple(weight_shape), *checked  # type: ignore[return-value]


def accept_shifted(
    input: Tensor, packed: Tensor, weight_shape: Sequence[int], *arguments: Any
) -> tuple[Tensor, Tensor, Shape, int, Geometry, Shifting]:
    """As :func:`accept_packed`, with integers behind the distances."""
    factor, bias, residual, residual_factor, zero_point, *rest = arguments
    *geometry, fraction, low, high, int32_output = rest
    after = Shifting(factor, bias, residual, residual_factor, fraction, low, high, int32_output)
    record = as_record(*geometry)
    others = {"factor": factor, "bias": bias, "residual": residual}
    shape = _check_bytes(input, packed, weight_shape, record, zero_point, others)
    _check_shifting(after, shape)
    check_packed(packed, weight_shape, record.groups)
    return input, packed, tuple(weight_shape), zero_point, record, after  # type: ignore[return-value]


def accept_to_bytes(
    input: Tensor, scale: float, zero_point: int, levels: int
) -> tuple[Tensor, float, int, int]:
    """Check a call of ``to_bytes``; the input that is returned is dense."""
    if input.dtype not in (torch.float32, torch.float64):
        raise AdderizeError(f"input: found dtype {input.dtype}, expected float32 or float64")
    if not 0 < scale < math.inf or not 1 <= levels <= 255:
        raise AdderizeError(
            f"scale is {scale} and levels {levels}; expected a positive number and 1 to 255"
        )
    dense = input.is_contiguous() or is_nhwc(input)
    return input if dense else input.contiguous(), scale, zero_point, levels


def accept_max_pool(
    input: Tensor, kernel_size: Sequence[int], *arguments: Any
) -> tuple[Tensor, Window]:
    """Check a call of ``max_pool2d_u8``, whose input is (N, C, H, W) uint8."""
    stride, padding, dilation, ceil_mode = arguments
    geometry = as_record(stride, padding, dilation)
    window = Window(tuple(kernel_size), geometry, ceil_mode)  # type: ignore[arg-type]
    if input.dtype is not torch.uint8 or input.dim() != 4:
        raise AdderizeError(
            f"input: found dtype {input.dtype} and shape {tuple(input.shape)}, expected "
            "torch.uint8 and (N, C, H, W)"
        )
    for name, pair in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        if min(pair) < 1:
            raise AdderizeError(f"{name} is {list(pair)}; expected at least 1")
    most = [size // 2 for size in kernel_size]
    if any(not 0 <= pad <= end for pad, end in zip(padding, most, strict=True)):
        raise AdderizeError(
            f"padding is {list(padding)}; expected at most half of the kernel, {most}"
        )
    if min(window.output_size(input.shape[2:])) < 1:
        height, width = input.shape[2:]
        raise AdderizeError(
            f"an image of {height}x{width} is smaller than the pooling window of "
            f"{list(kernel_size)} with padding {list(padding)} and dilation {list(dilation)}"
        )
    return input, window


def _checked_bytes(
    input: Tensor, filters: Tensor, weight_shape: Sequence[int], arguments: Sequence[Any]
) -> tuple[int, Geometry, Requantization]:
    """Shapes, dtypes and devices are checked, the values of tensors are not."""
    scale, shift, residual, residual_scale, zero_point, *rest = arguments
    *geometry, low, high, float_output = rest
    after = Requantization(scale, shift, residual, residual_scale, low, high, float_output)
    record = as_record(*geometry)
    others = {"scale": scale, "shift": shift, "residual": residual}
    shape = _check_bytes(input, filters, weight_shape, record, zero_point, others)
    _check_requantization(after, shape)
    return zero_point, record, after


def _check_bytes(
    input: Tensor,
    filters: Tensor,
    weight_shape: Sequence[int],
    geometry: Geometry,
    zero_point: int,
    others: Mapping[str, Tensor | None],
) -> Shape:
    """What all ops on bytes ask for; the output's shape, which a residual among the others has."""
    shape = geometry.output_shape(input.shape, weight_shape)
    taps = weight_shape[1] * weight_shape[2] * weight_shape[3]
    if taps > MOST_TAPS:
        raise AdderizeError(f"a filter has {taps} taps; 32 bits hold the sum of {MOST_TAPS}")
    for name, tensor in (("input", input), ("the filters", filters)):
        if tensor.dtype is not torch.uint8:
            raise AdderizeError(f"{name}: found dtype {tensor.dtype}, expected torch.uint8")
    residual = others["residual"]
    if residual is not None and residual.shape != shape:
        raise AdderizeError(
            f"residual: found shape {tuple(residual.shape)}, expected the output's {shape}"
        )
    for other in (filters, *others.values()):
        if other is not None and other.device != input.device:
            raise AdderizeError(
                f"input is on {input.device}, another tensor is not: move all to one device"
            )
    if not 0 <= zero_point <= 255:
        raise AdderizeError(f"zero_point is {zero_point}; expected an integer in [0, 255]")
    return shape


def _check_requantization(after: Requantization, shape: Shape) -> None:
    scale, shift, residual, _, low, high, float_output = after
    for name, tensor in (("scale", scale), ("shift", shift)):
        _check_by_filter(name, tensor, torch.float32, shape)
    if residual is not None and residual.dtype is not torch.uint8:
        raise AdderizeError(f"residual: found dtype {residual.dtype}, expected torch.uint8")
    if not low <= high:
        raise AdderizeError(f"low is {low} and high {high}; expected low <= high")
    if not float_output and (low < 0 or high > 255 or low % 1 or high % 1):
        raise AdderizeError(
            f"low is {low} and high {high}; bytes are clamped to integers in [0, 255]"
        )


def _check_shifting(after: Shifting, shape: Shape) -> None:
    factor, bias, residual, _, fraction, low, high, int32_output = after
    for name, tensor in (("factor", factor), ("bias", bias)):
        _check_by_filter(name, tensor, torch.int32, shape)
    if residual is not None and residual.dtype not in (torch.uint8, torch.int32):
        raise AdderizeError(
            f"residual: found dtype {residual.dtype}, expected torch.uint8 or torch.int32"
        )
    if not 0 <= fraction <= 31:
        raise AdderizeError(f"fraction is {fraction}; expected 0 to 31 bits")
    if not low <= high:
        raise AdderizeError(f"low is {low} and high {high}; expected low <= high")
    least, most = (-(2**31), 2**31 - 1) if int32_output else (0, 255)
    if low < least or high > most:
        raise AdderizeError(f"low is {low} and high {high}; expected integers in [{least}, {most}]")
    if not -(2**31) <= after.residual_factor < 2**31:
        raise AdderizeError(f"residual_factor is {after.residual_factor}; expected 32 bits")


def _check_by_filter(name: str, tensor: Tensor, dtype: torch.dtype, shape: Shape) -> None:
    if tensor.dtype is not dtype or tensor.shape != (shape[1],):
        raise AdderizeError(
            f"{name}: found dtype {tensor.dtype} and shape {tuple(tensor.shape)}, expected "
            f"{dtype} and ({shape[1]},), a number for each filter"
        )
