"""The float ops in the native library.

The kernels work on dense N,H,W,C images ("channels_last"); contiguous images are converted on the
way in and out.
"""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops.formats import memory_format
from adderize.ops.geometry import Geometry
from adderize.ops.gradients import SIGNS
from adderize.ops.native.filter_gradient import full_filter_gradient
from adderize.ops.native.layouts import empty_nhwc, in_format, nhwc
from adderize.ops.native.library import call, shape_of

_FORMS = {"auto": 0, "fast": 1, "exact": 2}


def adder_conv2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Y: (N, Cout, OH, OW), float32, of float32 tensors of any strides."""
    image, wanted = nhwc(input), memory_format(input, weight)
    output = empty_nhwc(geometry.output_shape(input.shape, weight.shape), wanted)
    call(
        "adderize_forward",
        shape_of(input.shape, weight.shape, geometry),
        image.data_ptr(),
        weight.data_ptr(),
        _strides(weight),
        output.data_ptr(),
        _form(),
        torch.get_num_threads(),
    )
    return in_format(output, wanted)


def adder_conv2d_input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dX: shape and memory format of input."""
    wanted, sign = memory_format(input), int(SIGNS[gradient].input)
    result = empty_nhwc(input.shape, wanted)
    _backward("adderize_input_gradient", grad, input, weight, geometry, result, sign)
    return in_format(result, wanted)


def adder_conv2d_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dF: shape and memory format of weight."""
    if not SIGNS[gradient].filters:
        return full_filter_gradient(grad, input, weight, geometry)
    result = empty_nhwc(weight.shape)
    _backward("adderize_sign_filter_gradient", grad, input, weight, geometry, result)
    return result.contiguous(memory_format=memory_format(weight))


def _backward(
    kernel: str,
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    result: Tensor,
    *mode: int,
) -> None:
    image, output_gradient = nhwc(input), nhwc(grad)
    call(
        kernel,
        shape_of(input.shape, weight.shape, geometry),
        output_gradient.data_ptr(),
        image.data_ptr(),
        weight.data_ptr(),
        _strides(weight),
        result.data_ptr(),
        *mode,
        torch.get_num_threads(),
    )


def _form() -> int:
    name = os.environ.get("ADDERIZE_FORM") or "auto"
    if name not in _FORMS:
        raise AdderizeError(f"ADDERIZE_FORM is {name!r}; expected one of {', '.join(_FORMS)}")
    return _FORMS[name]


def _strides(weight: Tensor) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 4)(*weight.stride())
