"""The full-precision filter gradient: a convolution's weight gradient plus a rank-one term.

    dF[co,k] = sum_{n,p} g[n,co,p] * (x_p[k] - F[co,k]) = wgrad(X, g) - F * G,   G = sum_{n,p} g

Where the inputs lie far from zero compared with their spread this cancels. Then, c being the mean
of each channel and V[co,tap] the sum of g over the positions whose tap is not in the padding,

    dF = wgrad(X - c, g) + c * V - F * G,   V, G and the two products in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Positions looked at to find the offset, and the offset (in standard deviations) that loses digits.
_SAMPLE = 1024
_FAR = 4.0


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
        result, total = _weight_gradient(grad, input, weight, *geometry)
        return result.addcmul_(weight, total.view(-1, 1, 1, 1), value=-1)
    centred = input - centre.view(1, -1, 1, 1)
    result, _ = _weight_gradient(grad, centred, weight, *geometry)
    inside = _inside_sums(grad, input, weight, stride, padding, dilation)
    per_group = centre.double().view(groups, 1, -1, 1, 1)
    of_filter = per_group.expand(-1, weight.shape[0] // groups, -1, 1, 1).flatten(0, 1)
    offset = of_filter * inside.unsqueeze(1)
    offset -= weight.double() * grad.sum((0, 2, 3), dtype=torch.float64).view(-1, 1, 1, 1)
    return result.add_(offset)


def _far_centre(input: Tensor) -> Tensor | None:
    """The channels' means, estimated, if they are far from zero; else None."""
    pixels = input.shape[2] * input.shape[3]
    step = max(1, input.shape[0] * pixels // _SAMPLE)
    # Every step-th pixel of all images, at a different place in each.
    flat = input.permute(0, 2, 3, 1).flatten(0, 2) if _is_flat(input) else None
    sample = flat[::step] if flat is not None else _spread_sample(input, step)
    deviation, mean = torch.std_mean(sample, 0, correction=0)
    spread = deviation.square().mean().sqrt()
    if bool(mean.abs().amax() <= _FAR * spread) or not bool(mean.isfinite().all()):
        return None
    return mean


def _is_flat(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last)


def _spread_sample(input: Tensor, step: int) -> Tensor:
    rows = input.flatten(2)[:, :, :: min(step, input.shape[2] * input.shape[3])]
    return rows.transpose(1, 2).flatten(0, 1)


def _weight_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The weight and bias gradients of the convolution of this shape."""
    _, result, total = torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        [weight.shape[0]],
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [False, True, True],
    )
    return result, total


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
