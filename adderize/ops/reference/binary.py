"""The binary op: a convolution of signs with scaled signs, made of torch's own operators.

    Y = conv(sign(x), sign(F_c) * mean |F_c|)          Rastegari et al., XNOR-Net, ECCV 2016, eq. 6

It is an op of its own so that every counter and exporter can tell it from a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops.convolution import convolution, input_gradient, weight_gradient
from adderize.ops.geometry import Geometry
from adderize.ops.operands import HALVES


def signs(tensor: Tensor) -> Tensor:
    """1 where a value is at least 0, -1 where it is below, NaN where it is NaN."""
    # torch.where is tens of times slower than arithmetic; torch.sign has 0 for 0 and for NaN.
    nothing_or_nan = tensor.clamp(-1, 1).mul_(0)
    return tensor.sign().add_(0.5).sign_().add_(nothing_or_nan)


def binary_filters(weight: Tensor) -> Tensor:
    """sign(F_c) * mean |F_c|, the best binary approximation of each filter (XNOR-Net, eq. 6)."""
    return signs(weight) * weight.abs().mean((1, 2, 3), keepdim=True)


def _filters_for(input: Tensor, weight: Tensor) -> Tensor:
    filters = binary_filters(weight)
    # Autocast leaves real filters as they are: in float16 tiny ones would lose their signs.
    return filters.to(input.dtype) if input.dtype in HALVES else filters


def binary_conv2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Y: (N, Cout, OH, OW), of the input's dtype."""
    return convolution(signs(input), _filters_for(input, weight), geometry)


def binary_conv2d_input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """dL/dX: passed straight through the sign where |x| <= 1."""
    filters = _filters_for(input, weight)
    gradient = input_gradient(grad, input, filters, geometry)
    # hardtanh_backward passes what lies between the bounds, without them.
    bound = 1 + torch.finfo(input.dtype).eps
    clipped: Tensor = torch.ops.aten.hardtanh_backward(gradient, input, -bound, bound)
    return clipped


def binary_conv2d_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """dL/dF: passed straight through the filter's sign and scale."""
    filters = torch.empty_like(weight, dtype=input.dtype)
    return weight_gradient(grad, signs(input), filters, geometry).to(weight.dtype)
