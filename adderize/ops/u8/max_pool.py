"""Max pooling of bytes, which torch's own does not take.

    adderize::max_pool2d_u8(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding,
                            int[2] dilation, bool ceil_mode) -> Tensor

`torch.nn.functional.max_pool2d` of (N, C, H, W) uint8. The output is channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import handle_torch_function, has_torch_function_unary

from adderize.errors import AdderizeError
from adderize.ops import backends
from adderize.ops.native.library import Shape, call

_library = torch.library.Library("adderize", "FRAGMENT")
_library.define(
    "max_pool2d_u8(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, "
    "int[2] dilation, bool ceil_mode) -> Tensor"
)


class Pooling(NamedTuple):
    """What follows the input in `adderize::max_pool2d_u8`."""

    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool

    def windows(self, size: int, axis: int) -> int:
        """How many windows there are along an axis."""
        reach = (self.kernel_size[axis] - 1) * self.dilation[axis]
        stride, padding = self.stride[axis], self.padding[axis]
        span = size + 2 * padding - reach - 1
        count = (-(-span // stride) if self.ceil_mode else span // stride) + 1
        # torch leaves out a window that would start beyond the image.
        if self.ceil_mode and (count - 1) * stride >= size + padding:
            count -= 1
        return count

    def output_size(self, input: Tensor) -> tuple[int, int, int, int]:
        """Of a (N, C, H, W) image; AdderizeError where there is no window."""
        if input.dtype is not torch.uint8 or input.dim() != 4:
            raise AdderizeError(
                f"input: found dtype {input.dtype} and shape {tuple(input.shape)}, expected "
                "torch.uint8 and (N, C, H, W)"
            )
        images, channels, *size = input.shape
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise AdderizeError(f"{name} is {list(getattr(self, name))}; expected at least 1")
        most = [size // 2 for size in self.kernel_size]
        if any(not 0 <= pad <= end for pad, end in zip(self.padding, most, strict=True)):
            raise AdderizeError(
                f"padding is {list(self.padding)}; expected at most half of the kernel, {most}"
            )
        height, width = (self.windows(size[axis], axis) for axis in (0, 1))
        if height < 1 or width < 1:
            raise AdderizeError(
                f"an image of {size[0]}x{size[1]} is smaller than the pooling window {self}"
            )
        return images, channels, height, width


def _max_pool(input: Tensor, *arguments: object) -> Tensor:
    p = Pooling(*arguments)  # type: ignore[arg-type]
    _, channels, height, width = p.output_size(input)
    if input.device.type != "cpu" or backends.choose("cpu", torch.uint8).name != "native":
        return _max_pool_reference(input, p).contiguous(memory_format=torch.channels_last)
    output = _empty_pooled(input, *arguments)
    image = input.contiguous(memory_format=torch.channels_last)
    geometry = (*p.kernel_size, *p.stride, *p.padding, *p.dilation, 1, height, width)
    shape = Shape(*image.shape, channels, *geometry)
    pointers = image.data_ptr(), output.data_ptr()
    call("adderize_max_pool_u8", shape, *pointers, torch.get_num_threads())
    return output


def _empty_pooled(input: Tensor, *arguments: object) -> Tensor:
    size = Pooling(*arguments).output_size(input)  # type: ignore[arg-type]
    return torch.empty(
        size, dtype=torch.uint8, device=input.device, memory_format=torch.channels_last
    )


def _max_pool_reference(q: Tensor, p: Pooling) -> Tensor:
    """Maxima of shifted slices, first down the rows, then across."""
    for axis in (0, 1):
        dim, stride, dilation = 2 + axis, p.stride[axis], p.dilation[axis]
        size, count = q.shape[dim], p.windows(q.shape[dim], axis)
        reach = (count - 1) * stride + (p.kernel_size[axis] - 1) * dilation + 1
        pads = (p.padding[axis], max(reach - size - p.padding[axis], 0))
        q = F.pad(q, (0, 0, *pads) if axis == 0 else pads)
        taps = (
            q.narrow(dim, tap * dilation, (count - 1) * stride + 1)
            for tap in range(p.kernel_size[axis])
        )
        windows = [tap[:, :, ::stride] if axis == 0 else tap[..., ::stride] for tap in taps]
        q = windows[0]
        for window in windows[1:]:
            q = torch.maximum(q, window)
    return q


def max_pool2d_bytes(
    q: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """``torch.nn.functional.max_pool2d`` of bytes, (N, C, H, W) or (C, H, W)."""
    sizes = (kernel_size, stride, padding, dilation)
    if has_torch_function_unary(q):
        return handle_torch_function(max_pool2d_bytes, (q,), q, *sizes, ceil_mode)
    image = q if q.dim() == 4 else q.unsqueeze(0)
    pairs = (list(_pair(size)) for size in sizes)
    pooled: Tensor = torch.ops.adderize.max_pool2d_u8(image, *pairs, ceil_mode)
    return pooled if q.dim() == 4 else pooled.squeeze(0)


_library.impl("max_pool2d_u8", _max_pool, "CompositeExplicitAutograd")
torch.library.register_fake("adderize::max_pool2d_u8", _empty_pooled, lib=_library)
