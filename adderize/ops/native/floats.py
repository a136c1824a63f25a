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
from adderize.ops.formats import is_nhwc, memory_format
from adderize.ops.geometry import Geometry
from adderize.ops.gradients import SIGNS
from adderize.ops.native.filter_gradient import full_filter_gradient
from adderize.ops.native.library import call, shape_of

_FORMS = {"auto": 0, "fast": 1, "exact": 2}


def adder_conv2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Y: (N, Cout, OH, OW), float32, of float32 tensors of any strides."""
    image = _nhwc(input)
    output = _empty_nhwc(*geometry.output_shape(input.shape, weight.shape))
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
    return _in_format(output, memory_format(input, weight))


def adder_conv2d_input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dX: shape and memory format of input."""
    result = _empty_nhwc(*input.shape)
    _backward(
        "adderize_input_gradient", grad, input, weight, geometry, result, int(SIGNS[gradient].input)
    )
    return _in_format(result, memory_format(input))


def adder_conv2d_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dF: shape and memory format of weight."""
    if not SIGNS[gradient].filters:
        return full_filter_gradient(grad, input, weight, geometry)
    result = _empty_nhwc(*weight.shape)
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
    image, output_gradient = _nhwc(input), _nhwc(grad)
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


def _nhwc(image: Tensor) -> Tensor:
    """The image with its memory in N,H,W,C order."""
    if is_nhwc(image):
        return image
    if not image.is_contiguous():
        return image.contiguous(memory_format=torch.channels_last)
    n, c, h, w = image.shape
    converted = torch.empty_like(image, memory_format=torch.channels_last)
    _transpose(image, converted, n, c, h * w)
    return converted


def _in_format(image: Tensor, wanted: torch.memory_format) -> Tensor:
    """An N,H,W,C image with the strides of the wanted memory format."""
    if wanted == torch.channels_last:
        return image
    n, c, h, w = image.shape
    if c == 1 or h * w == 1:
        return image.as_strided(image.shape, (c * h * w, h * w, w, 1))
    converted = torch.empty(image.shape, dtype=torch.float32, device="cpu")
    _transpose(image, converted, n, h * w, c)
    return converted


def _empty_nhwc(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def _transpose(source: Tensor, target: Tensor, batch: int, rows: int, columns: int) -> None:
    pointers = source.data_ptr(), target.data_ptr()
    call("adderize_transpose", batch, rows, columns, *pointers, torch.get_num_threads())
