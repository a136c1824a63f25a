"""The registry of the ops: every schema, with what it accepts and its result on fake tensors.

    adder_conv2d              Y = -sum |x - F| of floats; its two gradients are ops of their own
    adder_conv2d_u8           the same of bytes; "packed" takes filters in the kernels' own order,
                              "shifted" those, and integers instead of scales behind the distances
    to_bytes, max_pool2d_u8   what stands between layers on bytes
    binary_conv2d             XNOR-Net's convolution, and its two gradients

`reference/` states the mathematics. Everything that traces (torch.compile, torch.export, torch.fx,
fvcore) sees one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adderize.ops import byte_operands, operands, reference
from adderize.ops.byte_operands import Requantization, Shifting, Window
from adderize.ops.formats import memory_format, output_dtype
from adderize.ops.geometry import Geometry


class Op(NamedTuple):
    """An op; a backend that has it is a module with a function of its name.

    Attributes:
        arguments: of its schema; every op returns one Tensor.
        accept: of those arguments, those of the backends' functions; AdderizeError for a call that
            has no meaning.
        fake: of what `accept` gives, a result without values.
        operand: which of these the backend is chosen by, its device and dtype; None where only the
            reference has the op.
    """

    arguments: str
    accept: Callable[..., tuple[Any, ...]]
    fake: Callable[..., Tensor]
    operand: int | None = 0


def _adder(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return torch.empty(
        geometry.output_shape(input.shape, weight.shape),
        dtype=output_dtype(input),
        device=input.device,
        memory_format=memory_format(input, weight),
    )


def _input_gradient(grad: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=memory_format(input))


def _weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=memory_format(weight))


def _bytes(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _packed(input, weight, weight.shape, *rest)


def _packed(
    input: Tensor,
    packed: Tensor,
    weight_shape: Sequence[int],
    zero_point: int,
    geometry: Geometry,
    after: Requantization | Shifting,
) -> Tensor:
    return torch.empty(
        geometry.output_shape(input.shape, weight_shape),
        dtype=after.output_dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )


def _to_bytes(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, dtype=torch.uint8)


def _max_pool(input: Tensor, window: Window) -> Tensor:
    return torch.empty(
        (*input.shape[:2], *window.output_size(input.shape[2:])),
        dtype=torch.uint8,
        device=input.device,
        memory_format=torch.channels_last,
    )


_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
_FLOATS = f"Tensor input, Tensor weight, {_GEOMETRY}"
_BYTES = (
    "Tensor scale, Tensor shift, Tensor? residual, float residual_scale, int zero_point, "
    f"{_GEOMETRY}, float low, float high, bool float_output"
)
_SHIFTED = (
    "Tensor factor, Tensor bias, Tensor? residual, int residual_factor, int zero_point, "
    f"{_GEOMETRY}, int fraction, int low, int high, bool int32_output"
)

OPS = {
    "adder_conv2d": Op(f"{_FLOATS}, str gradient", operands.accept_adder, _adder),
    "adder_conv2d_input_gradient": Op(
        f"Tensor grad, {_FLOATS}, str gradient",
        operands.accept_adder_gradient,
        _input_gradient,
        operand=1,
    ),
    "adder_conv2d_weight_gradient": Op(
        f"Tensor grad, {_FLOATS}, str gradient",
        operands.accept_adder_gradient,
        _weight_gradient,
        operand=1,
    ),
    "adder_conv2d_u8": Op(
        f"Tensor input, Tensor weight, {_BYTES}", byte_operands.accept_bytes, _bytes
    ),
    "adder_conv2d_u8_packed": Op(
        f"Tensor input, Tensor packed, int[4] weight_shape, {_BYTES}",
        byte_operands.accept_packed,
        _packed,
    ),
    "adder_conv2d_u8_shifted": Op(
        f"Tensor input, Tensor packed, int[4] weight_shape, {_SHIFTED}",
        byte_operands.accept_shifted,
        _packed,
    ),
    "to_bytes": Op(
        "Tensor input, float scale, int zero_point, int levels",
        byte_operands.accept_to_bytes,
        _to_bytes,
    ),
    "max_pool2d_u8": Op(
        "Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
        "bool ceil_mode",
        byte_operands.accept_max_pool,
        _max_pool,
    ),
    # Made of torch's own operators: they serve every device, and fake tensors.
    "binary_conv2d": Op(_FLOATS, operands.accept_binary, reference.binary_conv2d, None),
    "binary_conv2d_input_gradient": Op(
        f"Tensor grad, {_FLOATS}",
        operands.accept_binary_gradient,
        reference.binary_conv2d_input_gradient,
        None,
    ),
    "binary_conv2d_weight_gradient": Op(
        f"Tensor grad, {_FLOATS}",
        operands.accept_binary_gradient,
        reference.binary_conv2d_weight_gradient,
        None,
    ),
}
