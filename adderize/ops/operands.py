"""What the ops on floats accept, and their arguments as the backends take them: checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops.formats import output_dtype
from adderize.ops.geometry import Geometry, as_record
from adderize.ops.gradients import check_gradient

HALVES = (torch.bfloat16, torch.float16)
_FLOATING = (torch.float32, torch.float64, *HALVES)


def accept_adder(input: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Geometry]:
    """Check a call of ``adder_conv2d``; the forward pass does not depend on the gradient mode.

    Input (N, Cin, H, W) and filters (Cout, Cin/groups, kh, kw) share a floating dtype and a device.

    Returns:
        input, filters, geometry.
    """
    *geometry, gradient = arguments
    _check_operands(input, weight, weight.dtype)
    check_gradient(gradient)
    record = as_record(*geometry)
    record.output_shape(input.shape, weight.shape)
    return input, weight, record


def accept_binary(input: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor, Geometry]:
    """As :func:`accept_adder`, but an input of half precision takes filters of any dtype."""
    record = as_record(*geometry)
    record.output_shape(input.shape, weight.shape)
    _check_operands(input, weight, input.dtype if input.dtype in HALVES else weight.dtype)
    return input, weight, record


def accept_adder_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Geometry, str]:
    """Check a call of one of the adder's gradients: grad, input, filters, geometry, mode."""
    *_, geometry = accept_adder(input, weight, *arguments)
    expected = geometry.output_shape(input.shape, weight.shape)
    if grad.shape != expected:
        raise AdderizeError(f"the output's gradient has shape {tuple(grad.shape)}; not {expected}")
    if grad.dtype != output_dtype(input) or grad.device != input.device:
        raise AdderizeError(
            f"the output's gradient has {grad.dtype} on {grad.device}; expected "
            f"{output_dtype(input)} on {input.device}, as the output has"
        )
    return grad, input, weight, geometry, arguments[-1]


def accept_binary_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, *geometry: Any
) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    """The arguments of one of the binary op's gradients; nothing is checked."""
    return grad, input, weight, as_record(*geometry)


def _check_operands(input: Tensor, weight: Tensor, filter_dtype: torch.dtype) -> None:
    if input.device != weight.device:
        raise AdderizeError(
            f"input is on {input.device} but the filters are on {weight.device}: move one of them"
        )
    if input.dtype not in _FLOATING:
        raise AdderizeError(f"input has dtype {input.dtype}; expected a floating-point dtype")
    if input.dtype != filter_dtype:
        raise AdderizeError(
            f"input has dtype {input.dtype} but the filters have {filter_dtype}: cast the input, "
            "or run under torch.autocast"
        )
