"""The op on bytes in the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops.native.library import Epilogue, Shape, call
from adderize.ops.u8.check import Arguments


def forward(
    input: Tensor,
    packed: Tensor,
    weight_shape: list[int],
    output_shape: tuple[int, int, int, int],
    a: Arguments,
) -> Tensor:
    """The output for checked arguments; images that are not channels_last are converted."""
    output = torch.empty(
        output_shape,
        dtype=torch.float32 if a.float_output else torch.uint8,
        memory_format=torch.channels_last,
    )
    cout, _, *kernel = weight_shape
    geometry = (*a.stride, *a.padding, *a.dilation, a.groups)
    shape = Shape(*input.shape, cout, *kernel, *geometry, *output_shape[2:])
    image, residual = _nhwc(input), None if a.residual is None else _nhwc(a.residual)
    filters, scale, shift = packed.contiguous(), a.scale.contiguous(), a.shift.contiguous()
    epilogue = Epilogue(
        scale.data_ptr(),
        shift.data_ptr(),
        None if residual is None else residual.data_ptr(),
        output.data_ptr(),
        a.residual_scale,
        a.low,
        a.high,
        a.float_output,
    )
    call(
        "adderize_forward_u8",
        shape,
        image.data_ptr(),
        filters.data_ptr(),
        a.zero_point,
        epilogue,
        torch.get_num_threads(),
    )
    return output


def _nhwc(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
