"""The full-precision filter gradient: a convolution's weight gradient plus a rank-one term.

    dF[co,k] = sum_{n,p} g[n,co,p] * (x_p[k] - F[co,k]) = wgrad(X, g) - F * G,   G = sum_{n,p} g

G is summed in float64: behind a norm g sums to almost nothing, and F * G must vanish with it. Where
the inputs lie far from zero compared with their spread, wgrad(X, g) cancels. Then, c being the mean
of each channel and V[co,tap] the sum of g over the positions whose tap is not in the padding,

    dF = wgrad(X - c, g) + c * V - F * G,   V, G and the two products in float64.

A backend decides how to estimate c, whether it is needed, and what computes wgrad.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adderize.ops.geometry import Geometry


def filter_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    *,
    products: Callable[[Tensor, Tensor, Tensor, Geometry], Tensor],
    total: Tensor,
    centre: Tensor | None,
) -> Tensor:
    """dL/dF, of the dtype of input and weight.

    Args:
        grad: (N, Cout, OH, OW), of the input's dtype.
        input: (N, Cin, H, W).
        weight: (Cout, Cin/groups, kh, kw).
        geometry: the layer's; a stride no longer than the padded image.
        products: wgrad of grad, input, weight and geometry; the weight's values do not matter.
        total: G, (Cout,), float64.
        centre: c, (Cin,), or None for the plain form.
    """
    centred = input if centre is None else input - centre.view(1, -1, 1, 1)
    result = products(grad, centred, weight, geometry).float()
    total = total.view(-1, 1, 1, 1)
    if centre is None:
        return result.addcmul_(weight.float(), total.float(), value=-1).to(weight.dtype)
    inside = _inside_sums(grad, input, weight, geometry)
    per_group = centre.double().view(geometry.groups, 1, -1, 1, 1)
    filters_a_group = weight.shape[0] // geometry.groups
    of_filter = per_group.expand(-1, filters_a_group, -1, 1, 1).flatten(0, 1)
    result.add_(of_filter * inside.unsqueeze(1) - weight * total)
    return result.to(weight.dtype)


def _inside_sums(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """V: (Cout, kh, kw), float64; the sum of g where the tap falls inside the image."""
    masks = []
    for axis, (stride, padding, dilation) in enumerate(zip(*geometry[:3], strict=True)):
        position = torch.arange(grad.shape[2 + axis], device=grad.device) * stride
        tap = torch.arange(weight.shape[2 + axis], device=grad.device) * dilation
        at = position[:, None] + tap - padding
        masks.append(((at >= 0) & (at < input.shape[2 + axis])).double())
    per_position = grad.sum(0, dtype=torch.float64)
    return torch.einsum("cyx,ya,xb->cab", per_position, *masks)
