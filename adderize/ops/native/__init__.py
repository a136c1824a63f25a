"""The native CPU backend: kernels in C++ behind a plain C header, see adderize/csrc.

They take float32 and uint8. ctypes releases the GIL, and the threads are those of
torch.get_num_threads().
"""

from adderize.ops.native.bytes import (
    adder_conv2d_u8,
    adder_conv2d_u8_packed,
    adder_conv2d_u8_shifted,
    max_pool2d_u8,
    to_bytes,
)
from adderize.ops.native.floats import (
    adder_conv2d,
    adder_conv2d_input_gradient,
    adder_conv2d_weight_gradient,
)
from adderize.ops.native.library import available, info, set_cpu

__all__ = [
    "adder_conv2d",
    "adder_conv2d_input_gradient",
    "adder_conv2d_u8",
    "adder_conv2d_u8_packed",
    "adder_conv2d_u8_shifted",
    "adder_conv2d_weight_gradient",
    "available",
    "info",
    "max_pool2d_u8",
    "set_cpu",
    "to_bytes",
]
