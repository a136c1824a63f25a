"""The full-precision filter gradient: a convolution's weight gradient plus a rank-one term.

    dF[co,k] = sum_{n,p} g[n,co,p] * (x_p[k] - F[co,k]) = wgrad(X, g) - F * G,   G = sum_{n,p} g

G is summed in float64: behind a norm g sums to almost nothing, and F * G must vanish with it. Where
the inputs lie far from zero compared with their spread, wgrad(X, g) cancels. Then, c being the mean
of each channel and V[co,tap] the sum of g over the positions whose tap is not in the padding,

    dF = wgrad(X - c, g) + c * V - F * G,   V, G and the two products in float64.

The means are estimated from a sample. What no constant per channel can centre (images at unlike
offsets, each with gradients that sum to zero) keeps float32's error relative to the offsets.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from adderize.ops._shapes import memory_format
from adderize.ops.native.library import call

_SAMPLED_VALUES = 65536
_FEWEST_POSITIONS = 64
_GOLDEN = 0.6180339887498949


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
    wanted = memory_format(weight)
    if input.shape[0] == 0:
        return torch.zeros_like(weight, memory_format=wanted)
    # A stride beyond the padded image means the same as one of its size, which oneDNN takes.
    sizes = zip(stride, input.shape[2:], padding, strict=True)
    stride = [min(step, size + 2 * pad) for step, size, pad in sizes]
    geometry = (stride, padding, dilation, groups)
    centre = _far_centre(input)
    centred = input if centre is None else input - centre.view(1, -1, 1, 1)
    result = _weight_gradient(grad, centred, weight, *geometry)
    total = _totals(grad).view(-1, 1, 1, 1)
    if centre is None:
        result.addcmul_(weight, total.float(), value=-1)
    else:
        inside = _inside_sums(grad, input, weight, stride, padding, dilation)
        per_group = centre.double().view(groups, 1, -1, 1, 1)
        of_filter = per_group.expand(-1, weight.shape[0] // groups, -1, 1, 1).flatten(0, 1)
        result.add_(of_filter * inside.unsqueeze(1) - weight * total)
    return result.contiguous(memory_format=wanted)


def _totals(grad: Tensor) -> Tensor:
    """G: (Cout,), float64."""
    if grad.numel() == 0 or not grad.is_contiguous(memory_format=torch.channels_last):
        return grad.sum((0, 2, 3), dtype=torch.float64)
    channels = grad.shape[1]
    totals = torch.empty(channels, dtype=torch.float64, device="cpu")
    positions, threads = grad.numel() // channels, torch.get_num_threads()
    call(
        "adderize_channel_totals", positions, channels, grad.data_ptr(), totals.data_ptr(), threads
    )
    return totals


def _far_centre(input: Tensor) -> Tensor | None:
    """The channels' means, estimated, if they are far from zero; else None."""
    channels = input.shape[1]
    sample = input
    if not input.is_contiguous(memory_format=torch.channels_last):
        sample = _sample(input)
    mean = torch.empty(channels, dtype=torch.float32, device="cpu")
    far = ctypes.c_int(0)
    positions = sample.numel() // channels
    call("adderize_centre", positions, channels, sample.data_ptr(), mean.data_ptr(), far)
    return mean if far.value else None


def _sample(image: Tensor) -> Tensor:
    """Positions spread evenly over images and pixels whatever their period: (count, C)."""
    n, c, h, w = image.shape
    count = min(n * h * w, max(_FEWEST_POSITIONS, _SAMPLED_VALUES // c))
    steps = torch.arange(count, dtype=torch.float64, device="cpu") * _GOLDEN
    at = (steps.frac() * (n * h * w)).long()
    pixel = at % (h * w)
    return image[at // (h * w), :, pixel // w, pixel % w].contiguous()


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
        position = torch.arange(grad.shape[2 + axis], device="cpu") * stride[axis] - padding[axis]
        tap = torch.arange(weight.shape[2 + axis], device="cpu") * dilation[axis]
        at = position[:, None] + tap
        masks.append(((at >= 0) & (at < input.shape[2 + axis])).double())
    per_position = grad.sum(0, dtype=torch.float64)
    return torch.einsum("cyx,ya,xb->cab", per_position, *masks)
