"""The ops on bytes that stand between layers, as functions; `pack` for the layers' filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from adderize.ops.geometry import as_pair
from adderize.ops.packing import pack, unpack

__all__ = ["max_pool2d_bytes", "pack", "to_bytes", "unpack"]


def to_bytes(values: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """``round(values / scale) + zero_point`` within [0, levels], uint8; 0 for a NaN.

    Args:
        values: any shape, float32 or float64.
        scale: a positive number.
        levels: 1 to 255.
    """
    q: Tensor = torch.ops.adderize.to_bytes(values, scale, zero_point, levels)
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
    names = ("kernel_size", "stride", "padding", "dilation")
    pairs = (as_pair(size, name) for size, name in zip(sizes, names, strict=True))
    pooled: Tensor = torch.ops.adderize.max_pool2d_u8(image, *pairs, ceil_mode)
    return pooled if q.dim() == 4 else pooled.squeeze(0)
