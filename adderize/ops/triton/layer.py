"""A layer's integers as the kernels take them, and its operands in the order that they read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops._shapes import output_size

_MOST_PIXELS = 2**31 - 2**10


class Layer(NamedTuple):
    """In the order of `kernels.indexing.GEOMETRY`; channels and filters are those of one group."""

    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    channels: int
    filters: int
    groups: int
    kernel_height: int
    kernel_width: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(
        cls,
        input: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> Layer:
        images, _, height, width = input.shape
        filters, channels, *kernel = weight.shape
        size = output_size(input, weight, stride, padding, dilation)
        if max(height * width, size[0] * size[1], math.prod(kernel) * channels) > _MOST_PIXELS:
            raise AdderizeError(
                f"an image of {height} x {width} pixels under filters of {tuple(weight.shape)} is "
                f"beyond the GPU kernels' {_MOST_PIXELS} pixels: cut it into tiles"
            )
        # A stride beyond the padded image means the same as one of its size.
        sizes = zip(stride, (height, width), padding, strict=True)
        stride_h, stride_w = (min(step, extent + 2 * pad) for step, extent, pad in sizes)
        return cls(
            images,
            height,
            width,
            size[0],
            size[1],
            channels,
            filters // groups,
            groups,
            kernel[0],
            kernel[1],
            stride_h,
            stride_w,
            padding[0],
            padding[1],
            dilation[0],
            dilation[1],
        )

    @property
    def taps(self) -> int:
        return self.kernel_height * self.kernel_width

    @property
    def positions(self) -> int:
        """Positions of the output, over all images."""
        return self.images * self.out_height * self.out_width

    @property
    def residues(self) -> tuple[int, int]:
        """Pixels of how many rows and columns modulo the stride there are."""
        return min(self.stride_h, self.height), min(self.stride_w, self.width)

    @property
    def periods(self) -> tuple[int, int]:
        """How far apart the taps lie that one pixel sees."""
        return (
            self.stride_h // math.gcd(self.stride_h, self.dilation_h),
            self.stride_w // math.gcd(self.stride_w, self.dilation_w),
        )

    @property
    def is_channelwise(self) -> bool:
        """Whether the groups are too small for tiles of one group."""
        return self.groups > 1 and min(self.channels, self.filters) < _FEWEST_CHANNELS


_FEWEST_CHANNELS = 16


def nhwc(image: Tensor) -> Tensor:
    """The image with its memory in N,H,W,C order."""
    return image.contiguous(memory_format=torch.channels_last)


def filters_by_tap(weight: Tensor) -> Tensor:
    """(Cout, kh, kw, Cin/groups), dense float32."""
    return weight.permute(0, 2, 3, 1).float().contiguous()


def taps_by_filter(weight: Tensor) -> Tensor:
    """(kh, kw, Cin/groups, Cout), dense float32."""
    return weight.permute(2, 3, 1, 0).float().contiguous()


def grouped_by_channel(weight: Tensor, groups: int) -> Tensor:
    """(groups, kh, kw, Cin/groups, Cout/groups), float32: what is summed over comes last."""
    grouped: Tensor = weight.float().unflatten(0, (groups, -1))
    return grouped.permute(0, 3, 4, 2, 1)
