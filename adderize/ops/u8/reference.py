"""The op on bytes in plain PyTorch: exact, slow, for any device."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops import reference
from adderize.ops.u8.check import Arguments


def forward(input: Tensor, weight: Tensor, a: Arguments) -> Tensor:
    """The output for checked arguments."""
    channels = (1, -1, 1, 1)
    v = _distances(input, weight, a).float()
    v.mul_(a.scale.view(channels)).add_(a.shift.view(channels))
    if a.residual is not None:
        v.add_(a.residual.float().mul_(a.residual_scale))
    if not a.float_output:
        v.round_()
    v.clamp_(a.low, a.high)
    dtype = torch.float32 if a.float_output else torch.uint8
    return v.to(dtype, memory_format=torch.channels_last)


def _distances(input: Tensor, weight: Tensor, a: Arguments) -> Tensor:
    """(N, Cout, OH, OW), int32.

    Less the zero point, the padding is zero and the float op applies: its sums of integers are
    exact as long as they stay below 2^24 in float32, 2^53 in float64.
    """
    largest = 255 * weight[0].numel()
    dtype = torch.float32 if largest <= 2**24 else torch.float64
    x, w = (tensor.to(dtype) - a.zero_point for tensor in (input, weight))
    geometry = (list(a.stride), list(a.padding), list(a.dilation), a.groups)
    return -reference.forward(x, w, *geometry).to(torch.int32)
