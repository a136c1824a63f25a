"""The full-precision filter gradient: a convolution's weight gradient plus a rank-one term.

    dF[co,k] = sum_{n,p} g[n,co,p] * (x_p[k] - F[co,k]) = wgrad(X, g) - F * G,   G = sum_{n,p} g

Where the inputs lie far from zero compared with their spread this cancels. Then, c being the mean
of each channel and V[co,tap] the sum of g over the positions whose tap is not in the padding,

    dF = wgrad(X - c, g) + c * V - F * G,   V, G and the two products in float64.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from adderize.ops.native.library import call

_SAMPLE = 512  # positions of a contiguous image that are looked at to find its offset


def full_filter_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """dL/dF: shape and memory format of weight."""
    if input.shape[0] == 0:
        return torch.zeros_like(weight)
    geometry = (stride, padding, dilation, groups)
    centre = _far_centre(input)
    if centre is None:
        total = grad.sum((0, 2, 3)).view(-1, 1, 1, 1)
        return _weight_gradient(grad, input, weight, *geometry).addcmul_(weight, total, value=-1)
    result = _weight_gradient(grad, input - centre.view(1, -1, 1, 1), weight, *geometry)
    inside = _inside_sums(grad, input, weight, stride, padding, dilation)
    per_group = centre.double().view(groups, 1, -1, 1, 1)
    of_filter = per_group.expand(-1, weight.shape[0] // groups, -1, 1, 1).flatten(0, 1)
    offset = of_filter * inside.unsqueeze(1)
    offset -= weight.double() * grad.sum((0, 2, 3), dtype=torch.float64).view(-1, 1, 1, 1)
    return result.add_(offset)


def _far_centre(input: Tensor) -> Tensor | None:
    """The channels' means, estimated, if they are far from zero; else None."""
    if not input.is_contiguous(memory_format=torch.channels_last):
        pixels = input.flatten(2)
        step = max(1, input.shape[0] * pixels.shape[2] // _SAMPLE)
        sample = pixels[:, :, :: min(step, pixels.shape[2])].transpose(1, 2)
        input = sample.flatten(0, 1).contiguous().view(-1, input.shape[1], 1, 1)
    channels = input.shape[1]
    mean, far = torch.empty(channels), ctypes.c_int(0)
    call(
        "adderize_centre",
        input.numel() // channels,
        channels,
        input.data_ptr(),
        mean.data_ptr(),
        far,
    )
    return mean if far.value else None


def _weight_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The weight gradient of the convolution of this shape."""
    result: Tensor = torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [False, True, False],
    )[1]
    return result


def _inside_sums(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """V: (Cout, kh, kw), float64; the sum of g where the tap falls inside the image."""
    masks = []
    for axis in (0, 1):
        position = torch.arange(grad.shape[2 + axis]) * stride[axis] - padding[axis]
        tap = torch.arange(weight.shape[2 + axis]) * dilation[axis]
        at = position[:, None] + tap
        masks.append(((at >= 0) & (at < input.shape[2 + axis])).double())
    per_position = grad.sum(0, dtype=torch.float64)
    return torch.einsum("cyx,ya,xb->cab", per_position, *masks)
