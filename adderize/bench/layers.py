"""Single layers against torch's float32 convolution: forward, gradients, and forward on bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from adderize.bench.timing import side_by_side
from adderize.ops.u8 import pack

ops = torch.ops.adderize


class Layer(NamedTuple):
    """A convolution to measure: batch, input channels, input size, filters, kernel size …"""

    name: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def pairs(self) -> int:
        """Input-filter pairs of one forward pass."""
        span = self.dilation * (self.kernel - 1) + 1
        side = (self.size + 2 * self.padding - span) // self.stride + 1
        taps = self.channels // self.groups * self.kernel**2
        return self.batch * self.filters * side * side * taps


LAYERS = (
    Layer("3x3  16, 32x32, b128", 128, 16, 32, 16, 3, padding=1),
    Layer("3x3  32, 16x16, b128", 128, 32, 16, 32, 3, padding=1),
    Layer("3x3  64, 8x8, b128", 128, 64, 8, 64, 3, padding=1),
    Layer("3x3  64, 56x56, b8", 8, 64, 56, 64, 3, padding=1),
    Layer("3x3  128, 28x28, b8", 8, 128, 28, 128, 3, padding=1),
    Layer("3x3  256, 14x14, b8", 8, 256, 14, 256, 3, padding=1),
    Layer("3x3  512, 7x7, b8", 8, 512, 7, 512, 3, padding=1),
    Layer("3x3/2  64-128, 56x56, b8", 8, 64, 56, 128, 3, stride=2, padding=1),
    Layer("1x1  256-64, 56x56, b8", 8, 256, 56, 64, 1),
    Layer("1x1  1024-256, 14x14, b8", 8, 1024, 14, 256, 1),
    Layer("1x1/2  256-512, 56x56, b8", 8, 256, 56, 512, 1, stride=2),
    Layer("depthwise 3x3  96, 112x112, b8", 8, 96, 112, 96, 3, padding=1, groups=96),
    Layer("depthwise 3x3  384, 14x14, b8", 8, 384, 14, 384, 3, padding=1, groups=384),
    Layer("grouped 3x3  128 in 32, 56x56, b8", 8, 128, 56, 128, 3, padding=1, groups=32),
    Layer("5x5  64, 28x28, b8", 8, 64, 28, 64, 5, padding=2),
    Layer("dilated 3x3  128, 28x28, b8", 8, 128, 28, 128, 3, padding=2, dilation=2),
    Layer("LeNet 5x5  1-6, 32x32, b256", 256, 1, 32, 6, 5),
    Layer("LeNet 5x5  6-16, 14x14, b256", 256, 6, 14, 16, 5),
    Layer("LeNet linear  400-120, b256", 256, 400, 1, 120, 1),
    Layer("LeNet linear  120-84, b256", 256, 120, 1, 84, 1),
)

PASSES = ("forward", "input gradient", "filter gradient", "8 bits")


def measure(
    layers: tuple[Layer, ...] = LAYERS, device: str = "cpu", **timing: Any
) -> Iterator[dict[str, Any]]:
    """One row a layer: milliseconds of the convolution and of the adder, and their ratio.

    Args:
        layers: what to measure; tensors are channels_last; float32, but those of "8 bits".
        device: where.
        timing: `rounds` and `seconds` of `adderize.bench.timing.side_by_side`.
    """
    for layer in layers:
        row: dict[str, Any] = {"layer": layer.name, "pairs": layer.pairs}
        for name, rivals in _calls(layer, device).items():
            best = side_by_side(rivals, **timing)
            row[name] = {
                "convolution_ms": best["convolution"] * 1e3,
                "adder_ms": best["adder"] * 1e3,
                "ratio": best["adder"] / best["convolution"],
            }
        yield row


def _calls(layer: Layer, device: str) -> dict[str, dict[str, Callable[[], object]]]:
    x, w = _operands(layer, device)
    pairs = [[value, value] for value in (layer.stride, layer.padding, layer.dilation)]
    stride, padding, dilation = pairs
    adder = (*pairs, layer.groups, "full")
    grad = torch.randn_like(ops.adder_conv2d(x, w, *adder))

    def convolve() -> object:
        return torch.conv2d(x, w, None, stride, padding, dilation, layer.groups)

    def convolve_backward(*mask: bool) -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, w, None, stride, padding, dilation, False, [0, 0], layer.groups, mask
        )

    return {
        "forward": {"convolution": convolve, "adder": lambda: ops.adder_conv2d(x, w, *adder)},
        "input gradient": {
            "convolution": lambda: convolve_backward(True, False, False),
            "adder": lambda: ops.adder_conv2d_input_gradient(grad, x, w, *adder),
        },
        "filter gradient": {
            "convolution": lambda: convolve_backward(False, True, False),
            "adder": lambda: ops.adder_conv2d_weight_gradient(grad, x, w, *adder),
        },
        "8 bits": {"convolution": convolve, "adder": _call_on_bytes(layer, x, w)},
    }


def _call_on_bytes(layer: Layer, x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    grid, zero_point = 32.0, 128
    bytes_x, bytes_w = (
        (tensor * grid + zero_point).round_().clamp_(0, 255).to(torch.uint8) for tensor in (x, w)
    )
    packed, shape = pack(bytes_w, layer.groups), list(w.shape)
    scale = torch.full((layer.filters,), -1 / (grid * w[0].numel()), device=x.device)
    shift = torch.full((layer.filters,), 255.0, device=x.device)
    pairs = ([value, value] for value in (layer.stride, layer.padding, layer.dilation))
    arguments = (scale, shift, None, 0.0, zero_point, *pairs, layer.groups, 0.0, 255.0, False)
    return lambda: ops.adder_conv2d_u8_packed(bytes_x, packed, shape, *arguments)


def _operands(layer: Layer, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shapes = (
        (layer.batch, layer.channels, layer.size, layer.size),
        (layer.filters, layer.channels // layer.groups, layer.kernel, layer.kernel),
    )
    x, w = (
        torch.randn(shape, generator=generator, device=device).to(memory_format=torch.channels_last)
        for shape in shapes
    )
    return x.relu_(), w
