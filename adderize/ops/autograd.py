"""Gradients and autocast of the float ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adderize.errors import AdderizeError

Cast = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]


def register(library: torch.library.Library) -> None:
    """Gradients and autocast of the adder and of the binary op."""
    _register_gradients(
        library,
        "adder_conv2d",
        "an adder layer has no second derivative: its gradients are surrogates, not derivatives",
    )
    _register_gradients(
        library,
        "binary_conv2d",
        "a binary layer has no second derivative: its gradients pass straight through the signs",
    )
    for name, cast in (("adder_conv2d", _cast_both), ("binary_conv2d", _cast_input)):
        op = getattr(torch.ops.adderize, name).default
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _register_autocast(library, op, cast, device_type, key)


def _cast_both(input: Tensor, weight: Tensor, device_type: str) -> tuple[Tensor, Tensor]:
    """To float32 on the CPU, to the autocast dtype elsewhere; the result stays float32."""
    dtype = torch.float32 if device_type == "cpu" else torch.get_autocast_dtype(device_type)
    return _cast(input, dtype), _cast(weight, dtype)


def _cast_input(input: Tensor, weight: Tensor, device_type: str) -> tuple[Tensor, Tensor]:
    """The filters stay: in float16 tiny ones would lose their signs."""
    return _cast(input, torch.get_autocast_dtype(device_type)), weight


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor


def _register_gradients(library: torch.library.Library, name: str, refusal: str) -> None:
    """Autograd for an op of (input, weight, ...) by its ops NAME_input_gradient and
    NAME_weight_gradient, which refuse to be differentiated themselves."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, *ctx.arguments = inputs
        ctx.save_for_backward(input, weight)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (grad, *ctx.saved_tensors, *ctx.arguments)
        gradients = (
            getattr(torch.ops.adderize, f"{name}_{of}_gradient")(*arguments) if needed else None
            for of, needed in zip(("input", "weight"), ctx.needs_input_grad, strict=False)
        )
        return (*gradients, *(None for _ in ctx.arguments))

    def refuse(ctx: Any, grad: Tensor) -> None:
        raise AdderizeError(
            f"{refusal}. Do not differentiate through them (gradient penalties, create_graph=True)"
        )

    torch.library.register_autograd(
        f"adderize::{name}", backward, setup_context=setup_context, lib=library
    )
    for of in ("input", "weight"):
        torch.library.register_autograd(f"adderize::{name}_{of}_gradient", refuse, lib=library)


def _register_autocast(
    library: torch.library.Library, op: Any, cast: Cast, device_type: str, key: str
) -> None:
    dispatch_key = getattr(torch._C.DispatchKey, key)

    def kernel(keyset: Any, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(dispatch_key)):
            output: Tensor = op(*cast(input, weight, device_type), *arguments)
            return output

    library.impl(op._schema.name.partition("::")[2], kernel, key, with_keyset=True)
    op.py_impl(dispatch_key)(lambda *arguments: kernel(None, *arguments))
