"""The GPU backend: kernels in Triton for float32, bfloat16 and float16, summed in float32."""

from adderize.ops.triton.floats import (
    adder_conv2d,
    adder_conv2d_input_gradient,
    adder_conv2d_weight_gradient,
)

__all__ = ["adder_conv2d", "adder_conv2d_input_gradient", "adder_conv2d_weight_gradient"]
