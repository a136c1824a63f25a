"""torch's own convolution and its gradients, by the record of a layer's geometry."""

from __future__ import annotations

import torch
from torch import Tensor

from adderize.ops.geometry import Geometry


def convolution(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    *walk, groups = geometry
    output: Tensor = torch.ops.aten.convolution(input, weight, None, *walk, False, [0, 0], groups)
    return output


def input_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return _gradients(grad, input, weight, geometry, [True, False, False])[0]


def weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The values of the weight do not matter, its shape, dtype and memory format do."""
    return _gradients(grad, input, weight, geometry, [False, True, False])[1]


def _gradients(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> list[Tensor]:
    *walk, groups = geometry
    gradients: list[Tensor] = torch.ops.aten.convolution_backward(
        grad, input, weight, None, *walk, False, [0, 0], groups, wanted
    )
    return gradients
