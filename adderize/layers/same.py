"""Adder convolution whose padding depends on the size of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from adderize.layers import scripted
from adderize.layers.adder import AdderConv2d
from adderize.ops.geometry import Geometry


class AdderConv2dSame(AdderConv2d):
    """Adder convolution with TensorFlow's "SAME" padding, computed from each input's size.

    The adder form of timm's ``Conv2dSame``: ceil(size / stride) outputs a side, any odd pixel of
    padding at the bottom and right. Its ``padding`` attribute reads (0, 0) as the original's does.
    """

    pads_by_size = True

    def _padded(self, input: Tensor) -> tuple[Tensor, int]:
        return pad_same(input, self.kernel_size, self.stride, self.dilation), 0

    def _scripted_mode(self) -> str:
        return "zeros"

    def _scripted_pads(self, input: Tensor) -> list[int]:
        return scripted.pads_by_size(input, self.weight, self.stride, self.dilation)


def pad_same(
    images: Tensor,
    kernel: Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Images with their "SAME" padding of zeros; for torch.fx, which has no sizes, one node."""
    if has_torch_function_unary(images):
        return handle_torch_function(pad_same, (images,), images, kernel, stride, dilation)
    return F.pad(images, same_padding(images.shape[-2:], kernel, stride, dilation))


def same_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
) -> list[int]:
    """TensorFlow's "SAME" padding as ``F.pad`` takes it: left, right, top, bottom."""
    geometry = Geometry.of(stride, 0, dilation)
    pads: list[int] = []
    for pixels, taps, step, spread in zip(
        size, kernel, geometry.stride, geometry.dilation, strict=True
    ):
        outputs = -(-pixels // step)
        total = max((outputs - 1) * step + (taps - 1) * spread + 1 - pixels, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads
