"""The ops on bytes in the native library; images that are not channels_last are converted."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops.byte_operands import Requantization, Shifting, Window
from adderize.ops.formats import nhwc
from adderize.ops.geometry import Geometry, Shape
from adderize.ops.native.library import (
    EpilogueStruct,
    ShapeStruct,
    ShiftEpilogueStruct,
    call,
    pooling_shape,
    shape_of,
)
from adderize.ops.packing import pack


def adder_conv2d_u8(
    input: Tensor, weight: Tensor, zero_point: int, geometry: Geometry, after: Requantization
) -> Tensor:
    """As of packed filters; packs them in each call."""
    packed, shape = pack(weight, geometry.groups), tuple(weight.shape)
    return adder_conv2d_u8_packed(input, packed, shape, zero_point, geometry, after)  # type: ignore[arg-type]


def adder_conv2d_u8_packed(
    input: Tensor,
    packed: Tensor,
    weight_shape: Shape,
    zero_point: int,
    geometry: Geometry,
    after: Requantization,
) -> Tensor:
    """(N, Cout, OH, OW), uint8 or float32, channels_last."""
    output = _output(input, weight_shape, geometry, after.output_dtype)
    residual = None if after.residual is None else nhwc(after.residual)
    scale, shift = after.scale.contiguous(), after.shift.contiguous()
    epilogue = EpilogueStruct(
        scale.data_ptr(),
        shift.data_ptr(),
        None if residual is None else residual.data_ptr(),
        output.data_ptr(),
        after.residual_scale,
        after.low,
        after.high,
        after.float_output,
    )
    shape = shape_of(input.shape, weight_shape, geometry)
    _forward("adderize_forward_u8", shape, input, packed, zero_point, epilogue)
    return output


def adder_conv2d_u8_shifted(
    input: Tensor,
    packed: Tensor,
    weight_shape: Shape,
    zero_point: int,
    geometry: Geometry,
    after: Shifting,
) -> Tensor:
    """(N, Cout, OH, OW), uint8 or int32, channels_last."""
    output = _output(input, weight_shape, geometry, after.output_dtype)
    residual = None if after.residual is None else nhwc(after.residual)
    factor, bias = after.factor.contiguous(), after.bias.contiguous()
    epilogue = ShiftEpilogueStruct(
        factor.data_ptr(),
        bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        output.data_ptr(),
        after.residual_factor,
        after.low,
        after.high,
        after.fraction,
        residual is not None and residual.dtype is torch.int32,
        after.int32_output,
    )
    shape = shape_of(input.shape, weight_shape, geometry)
    _forward("adderize_forward_u8_shifted", shape, input, packed, zero_point, epilogue)
    return output


def _output(input: Tensor, weight_shape: Shape, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    shape = geometry.output_shape(input.shape, weight_shape)
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def _forward(
    name: str,
    shape: ShapeStruct,
    input: Tensor,
    packed: Tensor,
    zero_point: int,
    epilogue: EpilogueStruct | ShiftEpilogueStruct,
) -> None:
    image, filters = nhwc(input), packed.contiguous()
    pointers = image.data_ptr(), filters.data_ptr()
    call(name, shape, *pointers, zero_point, epilogue, torch.get_num_threads())


def to_bytes(input: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """uint8 of a dense float32 tensor's shape and strides."""
    output = torch.empty_like(input, dtype=torch.uint8)
    numbers = (1 / scale, zero_point, levels)
    pointers = input.data_ptr(), output.data_ptr()
    threads = torch.get_num_threads()
    call("adderize_to_bytes", input.numel(), pointers[0], *numbers, pointers[1], threads)
    return output


def max_pool2d_u8(input: Tensor, window: Window) -> Tensor:
    """(N, C, OH, OW), uint8, channels_last."""
    image, shape = nhwc(input), pooling_shape(input.shape, window)
    output = torch.empty(
        (shape.n, shape.c, shape.oh, shape.ow),
        dtype=torch.uint8,
        device="cpu",
        memory_format=torch.channels_last,
    )
    pointers = image.data_ptr(), output.data_ptr()
    call("adderize_max_pool_u8", shape, *pointers, torch.get_num_threads())
    return output
