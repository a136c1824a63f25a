"""The full-precision filter gradient on oneDNN, as a matrix product where filters cover the image,
for most depthwise layers on a kernel of our own.

The centre is estimated from a sample.

What no constant per channel can centre (images at unlike offsets, each with gradients that sum to
zero) keeps float32's error relative to the offsets.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from adderize.ops import convolution
from adderize.ops.filter_gradient import filter_gradient
from adderize.ops.formats import is_nhwc, memory_format
from adderize.ops.geometry import Geometry
from adderize.ops.native.layouts import empty_nhwc, nhwc
from adderize.ops.native.library import call, shape_of

_SAMPLED_VALUES = 16384
_FEWEST_POSITIONS = 64
_GOLDEN = 0.6180339887498949


def full_filter_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dL/dF: shape and memory format of weight."""
    wanted = memory_format(weight)
    if input.shape[0] == 0:
        return torch.zeros_like(weight, memory_format=wanted)
    whole = input.shape[1:] == weight.shape[1:] and not any(geometry.padding)
    if whole and input.shape[0] == 1:  # nothing is summed, so nothing cancels
        difference = (input - weight).mul_(grad.view(-1, 1, 1, 1))
        return difference.contiguous(memory_format=wanted)
    total, centre = _totals(grad), _far_centre(input)
    geometry = geometry.within(input.shape[2:])  # oneDNN takes no stride beyond the padded image
    products = convolution.weight_gradient
    if whole:
        products = _matrix_product
    elif input.shape[1] == weight.shape[0] == geometry.groups:
        products = products if _suits_onednn(weight, geometry) else _depthwise_products
    operands = (grad, input, weight, geometry)
    result = filter_gradient(*operands, products=products, total=total, centre=centre)
    return result.contiguous(memory_format=wanted)


def _matrix_product(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """For filters that see the whole image at once, as those of linear layers do."""
    return (grad.flatten(1).t() @ input.flatten(1)).view_as(weight)


def _suits_onednn(weight: Tensor, geometry: Geometry) -> bool:
    """Whether its kernel for depthwise layers applies; without, it takes 6 times as long."""
    kernel, padding = weight.shape[2:], geometry.padding
    little = all(2 * pads <= taps for pads, taps in zip(padding, kernel, strict=True))
    return little and kernel[1] <= 3 and geometry.dilation == (1, 1)


def _depthwise_products(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    result = empty_nhwc(weight.shape)
    output_gradient, image = nhwc(grad), nhwc(input)
    pointers = output_gradient.data_ptr(), image.data_ptr(), result.data_ptr()
    shape = shape_of(input.shape, weight.shape, geometry)
    call("adderize_depthwise_products", shape, *pointers, torch.get_num_threads())
    return result


def _totals(grad: Tensor) -> Tensor:
    """G: (Cout,), float64."""
    if grad.numel() == 0 or not is_nhwc(grad):
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
    if not is_nhwc(input):
        sample = _sample(input)
    mean = torch.empty(channels, dtype=torch.float32, device="cpu")
    far = ctypes.c_int(0)
    positions = sample.numel() // channels
    call("adderize_centre", positions, channels, sample.data_ptr(), mean.data_ptr(), far)
    return mean if far.value else None


def _sample(image: Tensor) -> Tensor:
    """Positions at even distances over images and pixels, whatever their period: (count, C)."""
    n, c, h, w = image.shape
    count = min(n * h * w, max(_FEWEST_POSITIONS, _SAMPLED_VALUES // c))
    steps = torch.arange(count, dtype=torch.float64, device="cpu") * _GOLDEN
    at = (steps.frac() * (n * h * w)).long()
    pixel = at % (h * w)
    return image[at // (h * w), :, pixel // w, pixel % w].contiguous()
