"""The definition of the op in plain PyTorch: slow, obvious, the oracle of every test.

For input X (N, Cin, H, W) and filters F (Cout, Cin/groups, kh, kw), x_p being the patch that
output position p sees (Chen et al., AdderNet, CVPR 2020, section 3):

    Y[n,c,p]    = - sum_k |x_p[k] - F_c[k]|
    dL/dF_c[k]  = sum_{n,p} g[n,c,p] * (x_p[k] - F_c[k])
    dL/dx_p[k]  = sum_c g[n,c,p] * clip(F_c[k] - x_p[k], -1, 1)

With gradient="sign" the differences' signs stand in for both, with "sign_input" for the input's
alone. Works on any device. The image is walked in bands of output rows, so that intermediates stay
within about 256 MB whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.ops.formats import memory_format, output_dtype
from adderize.ops.geometry import Geometry
from adderize.ops.gradients import SIGNS

# The input gradient holds the patches and two temporaries of their size at a time.
_PATCH_BYTES = 64 * 2**20


class _Band(NamedTuple):
    """Some images, some rows of their output, and the padded input rows that those see."""

    images: slice
    output_rows: slice
    input_rows: slice


class _Layer:
    """A padded input, its filters as (groups, Cout/groups, K), and its patches band by band."""

    def __init__(self, input: Tensor, weight: Tensor, geometry: Geometry) -> None:
        self.geometry, self.dtype = geometry, output_dtype(input)
        self.kernel = weight.shape[2], weight.shape[3]
        self.output_shape = geometry.output_shape(input.shape, weight.shape)
        vertical, horizontal = geometry.padding
        self.padded = F.pad(input, (horizontal, horizontal, vertical, vertical))
        groups = geometry.groups
        self.filters = weight.to(self.dtype).reshape(groups, weight.shape[0] // groups, -1)

    def bands(self) -> Iterator[_Band]:
        images, out_channels, height, width = self.output_shape
        taps = self.padded.shape[1] * self.kernel[0] * self.kernel[1]
        row = max(taps, out_channels) * width * torch.finfo(self.dtype).bits // 8
        rows = max(1, min(height, _PATCH_BYTES // row))
        step = max(1, _PATCH_BYTES // (row * rows))
        stride, reach = self.geometry.stride[0], (self.kernel[0] - 1) * self.geometry.dilation[0]
        for n in range(0, images, step):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                seen = slice(top * stride, (bottom - 1) * stride + reach + 1)
                yield _Band(slice(n, n + step), slice(top, bottom), seen)

    def patches(self, band: _Band) -> Tensor:
        """(groups, positions, K): one row per output position."""
        columns = F.unfold(
            self.padded[band.images, :, band.input_rows],
            self.kernel,
            dilation=self.geometry.dilation,
            stride=self.geometry.stride,
        )
        images, taps, positions = columns.shape
        groups = self.geometry.groups
        columns = columns.view(images, groups, taps // groups, positions)
        return columns.permute(1, 0, 3, 2).flatten(1, 2).to(self.dtype)

    def positions(self, grad: Tensor, band: _Band) -> Tensor:
        """(groups, positions, Cout/groups): the output's gradient, ordered as the patches are."""
        rows = grad[band.images, :, band.output_rows]
        groups = self.geometry.groups
        rows = rows.reshape(rows.shape[0], groups, rows.shape[1] // groups, *rows.shape[2:])
        return rows.permute(1, 0, 3, 4, 2).flatten(1, 3).to(self.dtype)

    def fold(self, columns: Tensor, rows: Tensor) -> Tensor:
        """Add (groups, positions, K) up to where the patches were taken from."""
        groups, positions, taps = columns.shape
        per_image = columns.view(groups, rows.shape[0], positions // rows.shape[0], taps)
        per_image = per_image.permute(1, 0, 3, 2).flatten(1, 2)
        return F.fold(
            per_image,
            (rows.shape[2], rows.shape[3]),
            self.kernel,
            dilation=self.geometry.dilation,
            stride=self.geometry.stride,
        )

    def crop(self, padded: Tensor) -> Tensor:
        (vertical, horizontal), (height, width) = self.geometry.padding, padded.shape[2:]
        return padded[:, :, vertical : height - vertical, horizontal : width - horizontal]


def adder_conv2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Y: (N, Cout, OH, OW), float32, or float64 for float64 inputs."""
    layer = _Layer(input, weight, geometry)
    output = torch.empty(
        layer.output_shape,
        dtype=layer.dtype,
        device=input.device,
        memory_format=memory_format(input, weight),
    )
    for band in layer.bands():
        distances = torch.cdist(layer.patches(band), layer.filters, p=1.0)
        target = output[band.images, :, band.output_rows]
        shape = (geometry.groups, target.shape[0], *target.shape[2:], -1)
        target.copy_(-distances.view(shape).permute(1, 0, 4, 2, 3).flatten(1, 2))
    return output


def adder_conv2d_input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dX: shape, dtype and memory format of input."""
    layer, sign = _Layer(input, weight, geometry), SIGNS[gradient].input
    padded_gradient = torch.zeros(layer.padded.shape, dtype=layer.dtype, device=input.device)
    for band in layer.bands():
        patches, output_gradient = layer.patches(band), layer.positions(grad, band)
        columns = torch.zeros_like(patches)
        for c in range(layer.filters.shape[1]):
            difference = layer.filters[:, c : c + 1] - patches
            slope = difference.sign_() if sign else difference.clamp_(-1, 1)
            columns.addcmul_(output_gradient[:, :, c : c + 1], slope)
        rows = padded_gradient[band.images, :, band.input_rows]
        rows += layer.fold(columns, rows)
    return layer.crop(padded_gradient).to(
        input.dtype, memory_format=memory_format(input), copy=True
    )


def adder_conv2d_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, gradient: str
) -> Tensor:
    """dL/dF: shape, dtype and memory format of weight."""
    layer = _Layer(input, weight, geometry)
    sums = _signed_sums if SIGNS[gradient].filters else _weighted_differences
    total = torch.zeros_like(layer.filters)
    for band in layer.bands():
        total += sums(layer.positions(grad, band), layer.patches(band), layer.filters)
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
