"""The full-precision filter gradient: cuDNN's weight gradient plus a rank-one term."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops.filter_gradient import filter_gradient
from adderize.ops.formats import memory_format
from adderize.ops.geometry import Geometry


def full_filter_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dL/dF: shape, dtype and memory format of weight.

    Float32 inputs are always centred: whether they need it is known to the device only. Half
    precision inputs have too few digits to gain from it; g is rounded to their dtype, as a
    convolution's is under autocast, and sums are those of the rounded g.
    """
    geometry = geometry.within(input.shape[2:])
    if input.dtype == torch.float32:
        mean = input.mean((0, 2, 3))
        centre = torch.where(mean.isfinite(), mean, 0)
        total = grad.sum((0, 2, 3), dtype=torch.float64)
        result = filter_gradient(grad, input, weight, geometry, total=total, centre=centre)
    else:
        rounded = grad.to(input.dtype)
        total = rounded.sum((0, 2, 3), dtype=torch.float64)
        result = filter_gradient(rounded, input, weight, geometry, total=total, centre=None)
    return result.contiguous(memory_format=memory_format(weight))
