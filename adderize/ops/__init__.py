"""The op: schema, shapes, autograd, autocast.

    adderize::adder_conv2d(Tensor input, Tensor weight, int[2] stride, int[2] padding,
                           int[2] dilation, int groups, str gradient) -> Tensor

and its two backward ops, one for each gradient. Everything that traces (torch.compile,
torch.export, torch.fx, fvcore) sees one node. The kernels live beside this file, a module for
each backend; the mathematics is stated in reference.py. The op of binary networks is in binary.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops import backends, binary, flops, reference
from adderize.ops import u8 as u8
from adderize.ops._registration import register_autocast, register_gradients
from adderize.ops._shapes import check, memory_format, output_dtype, output_size

_ARGUMENTS = (
    "Tensor input, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "str gradient"
)
_OPS = ("adder_conv2d", "adder_conv2d_input_gradient", "adder_conv2d_weight_gradient")

_library = torch.library.Library("adderize", "DEF")
_library.define(f"adder_conv2d({_ARGUMENTS}) -> Tensor")
_library.define(f"adder_conv2d_input_gradient(Tensor grad, {_ARGUMENTS}) -> Tensor")
_library.define(f"adder_conv2d_weight_gradient(Tensor grad, {_ARGUMENTS}) -> Tensor")


def _implement(dispatch_key: str, backend: Callable[[Tensor], Any]) -> None:
    """Register the three ops for a dispatch key, on the module that `backend` picks."""

    def forward(
        input: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        gradient: str,
    ) -> Tensor:
        check(input, weight, stride, padding, dilation, groups, gradient)
        output: Tensor = backend(input).forward(input, weight, stride, padding, dilation, groups)
        return output

    def input_gradient(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
        _check_grad(grad, input, *arguments)
        result: Tensor = backend(input).input_gradient(grad, input, *arguments)
        return result

    def weight_gradient(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
        _check_grad(grad, input, *arguments)
        result: Tensor = backend(input).weight_gradient(grad, input, *arguments)
        return result

    for name, kernel in zip(_OPS, (forward, input_gradient, weight_gradient), strict=True):
        _library.impl(name, kernel, dispatch_key)


def _check_grad(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> None:
    check(input, weight, *arguments)
    size = output_size(input, weight, *arguments[:3])
    expected = (input.shape[0], weight.shape[0], *size)
    if grad.shape != expected:
        raise AdderizeError(f"the output's gradient has shape {tuple(grad.shape)}; not {expected}")
    if grad.dtype != output_dtype(input) or grad.device != input.device:
        raise AdderizeError(
            f"the output's gradient has {grad.dtype} on {grad.device}; expected "
            f"{output_dtype(input)} on {input.device}, as the output has"
        )


_implement("CompositeExplicitAutograd", lambda input: reference)
_implement("CPU", lambda input: backends.choose("cpu", input.dtype).module)
_implement("CUDA", lambda input: backends.choose("cuda", input.dtype).module)


@torch.library.register_fake("adderize::adder_conv2d")
def _fake_forward(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    gradient: str,
) -> Tensor:
    check(input, weight, stride, padding, dilation, groups, gradient)
    size = output_size(input, weight, stride, padding, dilation)
    return torch.empty(
        (input.shape[0], weight.shape[0], *size),
        dtype=output_dtype(input),
        device=input.device,
        memory_format=memory_format(input, weight),
    )


@torch.library.register_fake("adderize::adder_conv2d_input_gradient")
def _fake_input_gradient(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    _check_grad(grad, input, *arguments)
    return torch.empty_like(input, memory_format=memory_format(input))


@torch.library.register_fake("adderize::adder_conv2d_weight_gradient")
def _fake_weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    _check_grad(grad, input, weight, *arguments)
    return torch.empty_like(weight, memory_format=memory_format(weight))


def _cast(input: Tensor, weight: Tensor, device_type: str) -> tuple[Tensor, Tensor]:
    """To float32 on the CPU, to the autocast dtype elsewhere; the result stays float32."""
    dtype = torch.float32 if device_type == "cpu" else torch.get_autocast_dtype(device_type)

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return cast(input), cast(weight)


register_gradients(
    _library,
    "adder_conv2d",
    "an adder layer has no second derivative: its gradients are surrogates, not derivatives",
)
register_autocast(_library, "adder_conv2d", _cast)
binary.register(_library)
flops.register()
