"""The definition of the op in plain PyTorch: slow, obvious, the oracle of every test.

For input X (N, Cin, H, W) and filters F (Cout, Cin/groups, kh, kw), x_p being the patch that
output position p sees (Chen et al., AdderNet, CVPR 2020, section 3):

    Y[n,c,p]    = - sum_k |x_p[k] - F_c[k]|
    dL/dF_c[k]  = sum_{n,p} g[n,c,p] * (x_p[k] - F_c[k])
    dL/dx_p[k]  = sum_c g[n,c,p] * clip(F_c[k] - x_p[k], -1, 1)

With gradient="sign" the differences' signs stand in for both. Works on any device. The image is
walked in bands of output rows, so that intermediates stay within about 256 MB whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.ops._shapes import memory_format, output_dtype, output_size

# The input gradient holds the patches and two temporaries of their size at a time.
_PATCH_BYTES = 64 * 2**20


class _Geometry(NamedTuple):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(
        cls, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
    ) -> _Geometry:
        kernel = (weight.shape[2], weight.shape[3])
        return cls(
            kernel,
            (stride[0], stride[1]),
            (padding[0], padding[1]),
            (dilation[0], dilation[1]),
            groups,
        )

    def pad(self, image: Tensor) -> Tensor:
        vertical, horizontal = self.padding
        return F.pad(image, (horizontal, horizontal, vertical, vertical))

    def crop(self, padded: Tensor) -> Tensor:
        (vertical, horizontal), (height, width) = self.padding, padded.shape[2:]
        return padded[:, :, vertical : height - vertical, horizontal : width - horizontal]


class _Band(NamedTuple):
    """Some images, some rows of their output, and the padded input rows that those see."""

    images: slice
    output_rows: slice
    input_rows: slice


def _bands(
    input: Tensor, out_channels: int, size: tuple[int, int], geometry: _Geometry
) -> Iterator[_Band]:
    (height, width), (kernel, _) = size, geometry.kernel
    element = torch.finfo(output_dtype(input)).bits // 8
    taps = input.shape[1] * geometry.kernel[0] * geometry.kernel[1]
    row = max(taps, out_channels) * width * element
    rows = max(1, min(height, _PATCH_BYTES // row))
    images = max(1, _PATCH_BYTES // (row * rows))
    for n in range(0, input.shape[0], images):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first = top * geometry.stride[0]
            last = (bottom - 1) * geometry.stride[0] + (kernel - 1) * geometry.dilation[0] + 1
            yield _Band(slice(n, n + images), slice(top, bottom), slice(first, last))


def _patches(padded: Tensor, band: _Band, geometry: _Geometry) -> Tensor:
    """(groups, positions, K): the patches of a band, one row per output position."""
    columns = F.unfold(
        padded[band.images, :, band.input_rows],
        geometry.kernel,
        dilation=geometry.dilation,
        stride=geometry.stride,
    )
    images, taps, positions = columns.shape
    columns = columns.view(images, geometry.groups, taps // geometry.groups, positions)
    return columns.permute(1, 0, 3, 2).flatten(1, 2)


def _positions(image: Tensor, band: _Band, groups: int) -> Tensor:
    """(groups, positions, Cout/groups): an output or its gradient, ordered as the patches are."""
    rows = image[band.images, :, band.output_rows]
    rows = rows.reshape(rows.shape[0], groups, rows.shape[1] // groups, *rows.shape[2:])
    return rows.permute(1, 0, 3, 4, 2).flatten(1, 3)


def forward(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Y: (N, Cout, OH, OW), float32, or float64 for float64 inputs."""
    geometry = _Geometry.of(weight, stride, padding, dilation, groups)
    dtype, size = output_dtype(input), output_size(input, weight, stride, padding, dilation)
    output = torch.empty(
        (input.shape[0], weight.shape[0], *size),
        dtype=dtype,
        device=input.device,
        memory_format=memory_format(input, weight),
    )
    padded = geometry.pad(input)
    filters = weight.to(dtype).reshape(groups, weight.shape[0] // groups, -1)
    for band in _bands(input, weight.shape[0], size, geometry):
        patches = _patches(padded, band, geometry).to(dtype)
        distances = torch.cdist(patches, filters, p=1.0)
        target = output[band.images, :, band.output_rows]
        shape = (groups, target.shape[0], *target.shape[2:], -1)
        target.copy_(-distances.view(shape).permute(1, 0, 4, 2, 3).flatten(1, 2))
    return output


def input_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    gradient: str,
) -> Tensor:
    """dL/dX: shape, dtype and memory format of input."""
    geometry = _Geometry.of(weight, stride, padding, dilation, groups)
    dtype, size = output_dtype(input), (grad.shape[2], grad.shape[3])
    padded = geometry.pad(input)
    padded_gradient = torch.zeros(padded.shape, dtype=dtype, device=input.device)
    filters = weight.to(dtype).reshape(groups, weight.shape[0] // groups, 1, -1)
    for band in _bands(input, weight.shape[0], size, geometry):
        patches = _patches(padded, band, geometry).to(dtype)
        output_gradient = _positions(grad, band, groups).to(dtype)
        columns = torch.zeros_like(patches)
        for c in range(filters.shape[1]):
            difference = filters[:, c] - patches
            slope = difference.sign_() if gradient == "sign" else difference.clamp_(-1, 1)
            columns.addcmul_(output_gradient[:, :, c : c + 1], slope)
        rows = padded_gradient[band.images, :, band.input_rows]
        rows += _fold(columns, rows, geometry)
    return geometry.crop(padded_gradient).to(
        input.dtype, memory_format=memory_format(input), copy=True
    )


def _fold(columns: Tensor, rows: Tensor, geometry: _Geometry) -> Tensor:
    """Add (groups, positions, K) up to where the patches were taken from."""
    groups, positions, taps = columns.shape
    per_image = columns.view(groups, rows.shape[0], positions // rows.shape[0], taps)
    per_image = per_image.permute(1, 0, 3, 2).flatten(1, 2)
    return F.fold(
        per_image,
        (rows.shape[2], rows.shape[3]),
        geometry.kernel,
        dilation=geometry.dilation,
        stride=geometry.stride,
    )


def weight_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    gradient: str,
) -> Tensor:
    """dL/dF: shape, dtype and memory format of weight."""
    geometry = _Geometry.of(weight, stride, padding, dilation, groups)
    dtype, size = output_dtype(input), (grad.shape[2], grad.shape[3])
    padded = geometry.pad(input)
    filters = weight.to(dtype).reshape(groups, weight.shape[0] // groups, -1)
    total = torch.zeros_like(filters)
    for band in _bands(input, weight.shape[0], size, geometry):
        patches = _patches(padded, band, geometry).to(dtype)
        output_gradient = _positions(grad, band, groups).to(dtype)
        sums = _signed_sums if gradient == "sign" else _weighted_differences
        total += sums(output_gradient, patches, filters)
    return total.reshape(weight.shape).to(
        weight.dtype, memory_format=memory_format(weight), copy=True
    )


def _weighted_differences(grad: Tensor, patches: Tensor, filters: Tensor) -> Tensor:
    """sum_p g * (x - F), around the mean patch and with the sum of g in float64.

    A norm behind the layer makes g sum to zero: a common offset of the inputs must cancel, too.
    """
    centre = patches.mean(1, keepdim=True)
    grad_sum = grad.sum(1, dtype=torch.float64).unsqueeze(-1)
    offset = (filters.double() - centre.double()) * grad_sum
    return grad.transpose(1, 2) @ (patches - centre) - offset.to(grad.dtype)


def _signed_sums(grad: Tensor, patches: Tensor, filters: Tensor) -> Tensor:
    """sum_p g * sgn(x - F)."""
    sums = torch.empty_like(filters)
    for c in range(filters.shape[1]):
        signs = (patches - filters[:, c : c + 1]).sign_()
        sums[:, c] = (grad[:, None, :, c] @ signs).squeeze(1)
    return sums
