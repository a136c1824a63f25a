"""Gradients and autocast of the float ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from adderize.errors import AdderizeError

Cast = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]


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


class FloatOp(NamedTuple):
    """What autocast makes of an op's operands, and why it has no second derivative.

    Its gradients are the ops NAME_input_gradient and NAME_weight_gradient.
    """

    cast: Cast
    refusal: str


FLOAT_OPS = {
    "adder_conv2d": FloatOp(
        _cast_both,
        "an adder layer has no second derivative: its gradients are surrogates, not derivatives",
    ),
    "binary_conv2d": FloatOp(
        _cast_input,
        "a binary layer has no second derivative: its gradients pass straight through the signs",
    ),
}


def register(library: torch.library.Library) -> None:
    """Gradients and autocast of the float ops."""
    for name, float_op in FLOAT_OPS.items():
        _register_gradients(library, name, float_op)
        op = getattr(torch.ops.adderize, name).default
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _register_autocast(library, op, float_op.cast, device_type, key)


def gradients(ctx: Any, grad: Tensor, gradient: Callable[..., Tensor]) -> tuple[Tensor | None, ...]:
    """Those of the tensors and of the other arguments, where a context says which are needed.

    Args:
        ctx: holds the saved tensors and ``arguments``.
        gradient: of ("input" or "weight", grad, input, weight, arguments).
    """
    operands = (grad, *ctx.saved_tensors, *ctx.arguments)
    found = (
        gradient(of, *operands) if needed else None
        for of, needed in zip(("input", "weight"), ctx.needs_input_grad, strict=False)
    )
    return (*found, *(None for _ in ctx.arguments))


def refuse(float_op: FloatOp) -> NoReturn:
    raise AdderizeError(
        f"{float_op.refusal}. Do not differentiate through them (gradient penalties, "
        "create_graph=True)"
    )


def _register_gradients(library: torch.library.Library, name: str, float_op: FloatOp) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, *ctx.arguments = inputs
        ctx.save_for_backward(input, weight)

    def gradient(of: str, *operands: Any) -> Tensor:
        result: Tensor = getattr(torch.ops.adderize, f"{name}_{of}_gradient")(*operands)
        return result

    torch.library.register_autograd(
        f"adderize::{name}",
        lambda ctx, grad: gradients(ctx, grad, gradient),
        setup_context=setup_context,
        lib=library,
    )
    for of in ("input", "weight"):
        torch.library.register_autograd(
            f"adderize::{name}_{of}_gradient", lambda ctx, grad: refuse(float_op), lib=library
        )


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
