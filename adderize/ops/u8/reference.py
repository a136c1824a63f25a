"""The op on bytes in plain PyTorch: exact, slow, for any device."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops import reference


def distances(
    input: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """acc: (N, Cout, OH, OW), int32.

    Less the zero point, the padding is zero and the float op applies: its sums of integers are
    exact as long as they stay below 2^24 in float32, 2^53 in float64.
    """
    largest = 255 * weight[0].numel()
    dtype = torch.float32 if largest <= 2**24 else torch.float64
    x, w = (tensor.to(dtype) - zero_point for tensor in (input, weight))
    return -reference.forward(x, w, stride, padding, dilation, groups).to(torch.int32)


def epilogue(
    distances: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    low: float,
    high: float,
    float_output: bool,
) -> Tensor:
    """v of int32 distances, as uint8 or float32, channels_last."""
    channels = (1, -1, 1, 1)
    v = distances.float().mul_(scale.view(channels)).add_(shift.view(channels))
    if residual is not None:
        v.add_(residual.float().mul_(residual_scale))
    if not float_output:
        v.round_()
    v.clamp_(low, high)
    return v.to(torch.float32 if float_output else torch.uint8, memory_format=torch.channels_last)
