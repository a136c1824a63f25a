"""The reference: every op in plain PyTorch, for any device; the oracle of every test."""

from adderize.ops.reference.binary import (
    binary_conv2d,
    binary_conv2d_input_gradient,
    binary_conv2d_weight_gradient,
)
from adderize.ops.reference.bytes import (
    adder_conv2d_u8,
    adder_conv2d_u8_packed,
    adder_conv2d_u8_shifted,
    max_pool2d_u8,
    to_bytes,
)
from adderize.ops.reference.floats import (
    adder_conv2d,
    adder_conv2d_input_gradient,
    adder_conv2d_weight_gradient,
)

__all__ = [
    "adder_conv2d",
    "adder_conv2d_input_gradient",
    "adder_conv2d_u8",
    "adder_conv2d_u8_packed",
    "adder_conv2d_u8_shifted",
    "adder_conv2d_weight_gradient",
    "binary_conv2d",
    "binary_conv2d_input_gradient",
    "binary_conv2d_weight_gradient",
    "max_pool2d_u8",
    "to_bytes",
]
