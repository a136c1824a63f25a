"""The binary op: a convolution of signs with scaled signs, made of torch's own operators.

    adderize::binary_conv2d(Tensor input, Tensor weight, int[2] stride, int[2] padding,
                            int[2] dilation, int groups) -> Tensor

and its two backward ops. It is an op of its own so that every counter and exporter can tell it from
a convolution; it runs wherever torch's convolution does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adderize.ops._registration import register_autocast, register_gradients
from adderize.ops._shapes import check, check_geometry

_ARGUMENTS = (
    "Tensor input, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups"
)
_HALVES = (torch.bfloat16, torch.float16)


def signs(tensor: Tensor) -> Tensor:
    """1 where a value is at least 0, -1 where it is below, NaN where it is NaN."""
    # torch.where is tens of times slower than arithmetic; torch.sign has 0 for 0 and for NaN.
    nothing_or_nan = tensor.clamp(-1, 1).mul_(0)
    return tensor.sign().add_(0.5).sign_().add_(nothing_or_nan)


def binary_filters(weight: Tensor) -> Tensor:
    """sign(F_c) * mean |F_c|, the best binary approximation of each filter (XNOR-Net, eq. 6)."""
    return signs(weight) * weight.abs().mean((1, 2, 3), keepdim=True)


def _filters_for(input: Tensor, weight: Tensor) -> Tensor:
    filters = binary_filters(weight)
    # Autocast leaves real filters as they are: in float16 tiny ones would lose their signs.
    return filters.to(input.dtype) if input.dtype in _HALVES else filters


def _forward(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    check_geometry(input.shape, weight.shape, stride, padding, dilation, groups)
    filters = _filters_for(input, weight)
    check(input, filters, stride, padding, dilation, groups)
    output: Tensor = torch.ops.aten.convolution(
        signs(input), filters, None, stride, padding, dilation, False, [0, 0], groups
    )
    return output


def _input_gradient(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    filters = _filters_for(input, weight)
    gradient = _convolution_gradient(grad, input, filters, arguments, of=0)
    # It passes what lies between the bounds, without them.
    bound = 1 + torch.finfo(input.dtype).eps
    clipped: Tensor = torch.ops.aten.hardtanh_backward(gradient, input, -bound, bound)
    return clipped


def _weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    filters = torch.empty_like(weight, dtype=input.dtype)
    gradient = _convolution_gradient(grad, signs(input), filters, arguments, of=1)
    return gradient.to(weight.dtype)


def _convolution_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, arguments: Sequence[Any], of: int
) -> Tensor:
    """Of the input (0) or of the weight (1)."""
    stride, padding, dilation, groups = arguments
    gradients: list[Tensor] = torch.ops.aten.convolution_backward(
        grad, input, weight, None, stride, padding, dilation, False, [0, 0], groups,
        [of == 0, of == 1, False],
    )  # fmt: skip
    return gradients[of]


def _cast(input: Tensor, weight: Tensor, device_type: str) -> tuple[Tensor, Tensor]:
    if input.is_floating_point() and input.dtype != torch.float64:
        input = input.to(torch.get_autocast_dtype(device_type))
    return input, weight


def register(library: torch.library.Library) -> None:
    """Define the three ops; their kernels run on every device, and on fake tensors."""
    for name, kernel, arguments in (
        ("binary_conv2d", _forward, _ARGUMENTS),
        ("binary_conv2d_input_gradient", _input_gradient, f"Tensor grad, {_ARGUMENTS}"),
        ("binary_conv2d_weight_gradient", _weight_gradient, f"Tensor grad, {_ARGUMENTS}"),
    ):
        library.define(f"{name}({arguments}) -> Tensor")
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"adderize::{name}", kernel, lib=library)
    register_gradients(
        library,
        "binary_conv2d",
        "a binary layer has no second derivative: its gradients pass straight through the signs",
    )
    register_autocast(library, "binary_conv2d", _cast)
