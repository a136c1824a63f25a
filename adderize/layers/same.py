"""Adder convolution whose padding depends on the size of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from adderize.layers.adder import AdderConv2d


class AdderConv2dSame(AdderConv2d):
    """Adder convolution with TensorFlow's "SAME" padding, computed from each input's size.

    The adder form of timm's ``Conv2dSame``: ceil(size / stride) outputs a side, any odd pixel of
    padding at the bottom and right. Its ``padding`` attribute reads (0, 0) as the original's does.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads = same_padding(input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        return super().forward(F.pad(input, pads))


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """TensorFlow's "SAME" padding as ``F.pad`` takes it: left, right, top, bottom."""
    pads: list[int] = []
    for pixels, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        outputs = -(-pixels // step)
        total = max((outputs - 1) * step + (taps - 1) * spread + 1 - pixels, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads
