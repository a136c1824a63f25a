"""The native CPU backend: float32 kernels in C++ behind a plain C header, see adderize/csrc.

The kernels work on dense N,H,W,C images ("channels_last"); contiguous images are converted on the
way in and out. ctypes releases the GIL, and the threads are those of torch.get_num_threads().
"""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops._shapes import memory_format
from adderize.ops.native import library
from adderize.ops.native.filter_gradient import full_filter_gradient
from adderize.ops.native.library import Shape, call, info, set_cpu

__all__ = ["available", "forward", "info", "input_gradient", "set_cpu", "weight_gradient"]

_FORMS = {"auto": 0, "fast": 1, "exact": 2}
_GRADIENTS = {"full": 0, "sign": 1}


def available() -> tuple[bool, str]:
    """Whether the native library can be used, and why (or why not) in one sentence."""
    found, reason = library.load()
    return found is not None, reason


def _form() -> int:
    name = os.environ.get("ADDERIZE_FORM") or "auto"
    if name not in _FORMS:
        raise AdderizeError(f"ADDERIZE_FORM is {name!r}; expected one of {', '.join(_FORMS)}")
    return _FORMS[name]


def _shape(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Shape:
    n, c, *size = input.shape
    cout, _, *kernel = weight.shape
    out = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return Shape(n, c, *size, cout, *kernel, *stride, *padding, *dilation, groups, *out)


def _strides(weight: Tensor) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 4)(*weight.stride())


def _transpose(source: Tensor, target: Tensor, batch: int, rows: int, columns: int) -> None:
    pointers = source.data_ptr(), target.data_ptr()
    call("adderize_transpose", batch, rows, columns, *pointers, torch.get_num_threads())


def _is_nhwc(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last)


def _nhwc(image: Tensor) -> Tensor:
    """The image with its memory in N,H,W,C order."""
    if _is_nhwc(image):
        return image
    if not image.is_contiguous():
        return image.contiguous(memory_format=torch.channels_last)
    n, c, h, w = image.shape
    converted = torch.empty_like(image, memory_format=torch.channels_last)
    _transpose(image, converted, n, c, h * w)
    return converted


def _empty_nhwc(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty(
        (n, c, h, w), dtype=torch.float32, device="cpu", memory_format=torch.channels_last
    )


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


def forward(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Y: (N, Cout, OH, OW), float32, of float32 tensors of any strides."""
    wanted = memory_format(input, weight)
    shape = _shape(input, weight, stride, padding, dilation, groups)
    image = _nhwc(input)
    output = _empty_nhwc(shape.n, shape.cout, shape.oh, shape.ow)
    call(
        "adderize_forward",
        shape,
        image.data_ptr(),
        weight.data_ptr(),
        _strides(weight),
        output.data_ptr(),
        _form(),
        torch.get_num_threads(),
    )
    return _in_format(output, wanted)


def input_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    gradient: str,
) -> Tensor:
    """dL/dX: shape and memory format of input."""
    shape = _shape(input, weight, stride, padding, dilation, groups)
    image, output_gradient = _nhwc(input), _nhwc(grad)
    result = _empty_nhwc(shape.n, shape.c, shape.h, shape.w)
    call(
        "adderize_input_gradient",
        shape,
        output_gradient.data_ptr(),
        image.data_ptr(),
        weight.data_ptr(),
        _strides(weight),
        result.data_ptr(),
        _GRADIENTS[gradient],
        torch.get_num_threads(),
    )
    return _in_format(result, memory_format(input))


def weight_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    gradient: str,
) -> Tensor:
    """dL/dF: shape and memory format of weight."""
    if gradient == "full":
        return full_filter_gradient(grad, input, weight, stride, padding, dilation, groups)
    shape = _shape(input, weight, stride, padding, dilation, groups)
    image, output_gradient = _nhwc(input), _nhwc(grad)
    result = _empty_nhwc(*weight.shape)
    call(
        "adderize_sign_filter_gradient",
        shape,
        output_gradient.data_ptr(),
        image.data_ptr(),
        weight.data_ptr(),
        _strides(weight),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result.contiguous(memory_format=memory_format(weight))
