"""The float ops under the transforms of torch.func, and what they cannot do.

torch.func differentiates `torch.autograd.Function`s and no op of torch.library: under its
transforms an op is called through one. Batches of vmap become part of the op's own batch where the
filters are shared, else groups: one call of a kernel either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adderize.ops.autograd import FLOAT_OPS, FloatOp, gradients, refuse, refuse_forward_mode


def call(name: str, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    """A float op, under transforms of torch.func too.

    Raises:
        AdderizeError: forward-mode differentiation.
    """
    op: Callable[..., Tensor] = getattr(torch.ops.adderize, name)
    if torch.compiler.is_compiling():
        return op(input, weight, *arguments)
    if torch._C._are_functorch_transforms_active() and _transformed():
        if torch.is_autocast_enabled(input.device.type):
            input, weight = FLOAT_OPS[name].cast(input, weight, input.device.type)
        result: Tensor = _FUNCTIONS[name].apply(input, weight, *arguments)
        return result
    return op(input, weight, *arguments)


def register(library: torch.library.Library) -> None:
    """The rules of vmap for the float ops and their gradients."""
    for name in FLOAT_OPS:
        for op, of in ((name, ""), *((f"{name}_{of}_gradient", of) for of in ("input", "weight"))):
            rule = _batching_rule(getattr(torch.ops.adderize, op), of)
            torch.library.register_vmap(f"adderize::{op}", rule, lib=library)


def _transformed() -> bool:
    """Whether a transform is active that ops of torch.library know nothing of."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() != torch._C._functorch.TransformType.Functionalize for level in stack)


def _batching_rule(op: Callable[..., Tensor], of: str) -> Callable[..., tuple[Tensor, int]]:
    """The rule for an op, or for its gradient of "input" or "weight"."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        count = 3 if of else 2
        *images, weight = arguments[:count]
        *image_dims, weight_dim = in_dims[:count]
        stride, padding, dilation, groups, *rest = arguments[count:]
        size = info.batch_size
        if weight_dim is None and of != "weight":
            stacked = [_stacked(*image, 0, size) for image in zip(images, image_dims, strict=True)]
            folded = [image.flatten(0, 1) for image in stacked]
            result = op(*folded, weight, stride, padding, dilation, groups, *rest)
            return result.reshape(size, stacked[0].shape[1], *result.shape[1:]), 0
        stacked = [_stacked(*image, 1, size) for image in zip(images, image_dims, strict=True)]
        folded = [image.flatten(1, 2) for image in stacked]
        filters = _stacked(weight, weight_dim, 0, size).flatten(0, 1)
        result = op(*folded, filters, stride, padding, dilation, groups * size, *rest)
        along = 0 if of == "weight" else 1
        return result.unflatten(along, (size, result.shape[along] // size)), along

    return rule


def _stacked(tensor: Tensor, dim: int | None, along: int, size: int) -> Tensor:
    """With the dimension of vmap at a place; the same tensor for all where it has none."""
    if dim is not None:
        return tensor.movedim(dim, along)
    return tensor.unsqueeze(along).expand(*tensor.shape[:along], size, *tensor.shape[along:])


def _function(name: str, float_op: FloatOp) -> type[torch.autograd.Function]:
    class Gradient(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(of: str, *arguments: Any) -> Tensor:
            result: Tensor = getattr(torch.ops.adderize, f"{name}_{of}_gradient")(*arguments)
            return result

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            refuse(float_op)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            refuse(float_op)

    class Forward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            result: Tensor = getattr(torch.ops.adderize, name)(*arguments)
            return result

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            input, weight, *ctx.arguments = inputs
            ctx.save_for_backward(input, weight)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, grad, Gradient.apply)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            refuse_forward_mode()

    return Forward


_FUNCTIONS = {name: _function(name, op) for name, op in FLOAT_OPS.items()}
