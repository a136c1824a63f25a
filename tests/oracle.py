"""The adder convolution written from its formula in float64, independently of the package."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Expected(NamedTuple):
    output: Tensor
    input_gradient: Tensor
    weight_gradient: Tensor


def adder_conv2d(
    input: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    gradient: str = "full",
) -> Expected:
    """Loops over the filter's taps; every tap sees a strided view of the padded input."""
    x = F.pad(input.double(), (padding[1], padding[1], padding[0], padding[0]))
    w, g = weight.double(), grad.double()
    (n, _, height, width), (cout, per_group, kh, kw) = grad.shape, weight.shape
    filters = w.view(groups, cout // groups, per_group, kh, kw)
    g = g.view(n, groups, cout // groups, 1, height, width)
    output = torch.zeros(n, groups, cout // groups, height, width, dtype=torch.float64)
    dx, dw = torch.zeros_like(x), torch.zeros_like(filters)
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            seen = x[:, :, rows, columns].reshape(n, groups, 1, per_group, height, width)
            difference = seen - filters[None, :, :, :, i, j, None, None]
            output -= difference.abs().sum(3)
            slope = difference.sign() if gradient == "sign" else difference
            dw[..., i, j] = (g * slope).sum((0, 4, 5))
            slope = (-difference).clamp(-1, 1) if gradient == "full" else (-difference).sign()
            dx[:, :, rows, columns] += (g * slope).sum(2).flatten(1, 2)
    bottom, right = x.shape[2] - padding[0], x.shape[3] - padding[1]
    return Expected(
        output.flatten(1, 2), dx[:, :, padding[0] : bottom, padding[1] : right], dw.view_as(weight)
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation as a fraction of the largest expected magnitude."""
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp_min(1e-30)
    return float((actual.double() - expected).abs().max() / scale)
