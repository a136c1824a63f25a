"""A layer's integers as the kernels take them, and its operands in the order that they read."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops.geometry import Geometry

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
    def of(cls, input: Tensor, weight: Tensor, geometry: Geometry) -> Layer:
        return _layer(input.shape, weight.shape, geometry)

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


@functools.lru_cache(maxsize=4096)
def _layer(input: Sequence[int], weight: Sequence[int], geometry: Geometry) -> Layer:
    images, _, height, width = input
    filters, channels, *kernel = weight
    size = geometry.output_size((height, width), kernel)
    if max(height * width, math.prod(size), math.prod(kernel) * channels) > _MOST_PIXELS:
        raise AdderizeError(
            f"an image of {height} x {width} pixels under filters of {tuple(weight)} is "
            f"beyond the GPU kernels' {_MOST_PIXELS} pixels: cut it into tiles"
        )
    stride, padding, dilation, groups = geometry.within((height, width))
    return Layer(
        images,
        height,
        width,
        *size,
        channels,
        filters // groups,
        groups,
        kernel[0],
        kernel[1],
        *stride,
        *padding,
        *dilation,
    )


def filters_by_tap(weight: Tensor) -> Tensor:
    """(Cout, kh, kw, Cin/groups), dense float32."""
    return weight.permute(0, 2, 3, 1).float().contiguous()


def taps_by_filter(weight: Tensor) -> Tensor:
    """(kh, kw, Cin/groups, Cout), dense float32."""
    return weight.permute(2, 3, 1, 0).float().contiguous()


def taps_by_channel(weight: Tensor, groups: int) -> Tensor:
    """(kh, kw, Cout/groups, Cin), dense float32."""
    grouped = weight.float().view(groups, -1, *weight.shape[1:])
    return grouped.permute(3, 4, 1, 0, 2).contiguous()
