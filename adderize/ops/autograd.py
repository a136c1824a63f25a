"""Gradients and autocast of the float ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adderize.errors import AdderizeError

_NO_FORWARD_MODE = (
    "adder and binary layers have no forward-mode derivatives (jvp, jacfwd, hessian, "
    "torch.autograd.forward_ad): use reverse mode (grad, vjp, jacrev)"
)
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
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _register_autocast(library, _op(name), float_op.cast, device_type, key)


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


def refuse_forward_mode() -> NoReturn:
    raise AdderizeError(_NO_FORWARD_MODE)


def _register_gradients(library: torch.library.Library, name: str, float_op: FloatOp) -> None:
    op, gradient_ops = _op(name), {of: _op(f"{name}_{of}_gradient") for of in ("input", "weight")}

    def gradient(of: str, *operands: Any) -> Tensor:
        # Nothing asks for a second derivative; what Dynamo traces cannot hold the guard.
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return _below_autograd(gradient_ops[of], *operands)
        result: Tensor = gradient_ops[of](*operands)
        return result

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
            ctx.arguments = arguments
            ctx.save_for_backward(input, weight)
            return _below_autograd(op, input, weight, *arguments)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, grad, gradient)

    _register_function(library, op, Forward)
    for gradient_op in gradient_ops.values():
        _register_function(library, gradient_op, _gradient_function(gradient_op, float_op))


def _gradient_function(op: Any, float_op: FloatOp) -> type[torch.autograd.Function]:
    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            return _below_autograd(op, *arguments)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> NoReturn:
            refuse(float_op)

    return Gradient


def _register_function(
    library: torch.library.Library, op: Any, function: type[torch.autograd.Function]
) -> None:
    """As torch.library.register_autograd does for any op, at half of its time on the host."""

    def kernel(*arguments: Any) -> Tensor:
        if forward_ad._current_level >= 0:
            _refuse_tangents(arguments)
        if torch.is_grad_enabled() and any(
            each.requires_grad for each in arguments if isinstance(each, Tensor)
        ):
            result: Tensor = function.apply(*arguments)
            return result
        return _below_autograd(op, *arguments)

    library.impl(op._opname, kernel, "Autograd")


def _refuse_tangents(arguments: tuple[Any, ...]) -> None:
    for each in arguments:
        if isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None:
            refuse_forward_mode()


def _below_autograd(op: Any, *arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result: Tensor = op(*arguments)
        return result


def _op(name: str) -> Any:
    return getattr(torch.ops.adderize, name).default


def _register_autocast(
    library: torch.library.Library, op: Any, cast: Cast, device_type: str, key: str
) -> None:
    dispatch_key = getattr(torch._C.DispatchKey, key)
    excluded = torch._C.DispatchKeySet(dispatch_key)

    def kernel(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            output: Tensor = op(*cast(input, weight, device_type), *arguments)
            return output

    library.impl(op._opname, kernel, key)
    op.py_impl(dispatch_key)(kernel)
