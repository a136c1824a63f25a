"""Adder layers in floats that compute what their forms on bytes will, and train."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adderize.errors import AdderizeError
from adderize.layers import Adder, AdderConv2d, AdderConv2dSame, AdderLinear
from adderize.quantize.qparams import QParams, quantize_filters


class _StraightThrough(torch.autograd.Function):
    """Rounded values forward; the gradient goes to the values as it comes, or where a mask lets it
    (Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
        ctx.inside = inside
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient if ctx.inside is None else gradient * ctx.inside, None, None


class FakeQuantize(nn.Module):
    """Rounds a tensor to the values that bytes have: floats in and out, of the same shape.

    The gradient passes straight through within the range, and is zero where values saturate.

    Attributes:
        qparams: scale, zero point and bits; part of the state dict.
    """

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.qparams = qparams

    def forward(self, values: Tensor) -> Tensor:
        qparams = self.qparams
        with torch.no_grad():
            rounded = qparams.to_float(qparams.to_bytes(values))
            inside = (values >= qparams.low) & (values <= qparams.high)
        result: Tensor = _StraightThrough.apply(values, rounded, inside)
        return result

    def get_extra_state(self) -> dict[str, Any]:
        return asdict(self.qparams)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.qparams = QParams(**state)

    def extra_repr(self) -> str:
        own = self.qparams
        return f"{own.low:.3g} .. {own.high:.3g}, zero_point={own.zero_point}, bits={own.bits}"


@torch.no_grad()
def rounded_filters(weight: Tensor, qparams: QParams, bits: int) -> tuple[Tensor, Tensor]:
    """Filters whose distances to inputs within the range are those of their bytes.

    Clamping moves a distance by a constant, so filters beyond the range need not be clamped here.
    They must not: an adder's input gradient, ``clip(w - x, -1, 1)``, would vanish where inputs lie
    at the end of the range that a filter was clamped to, as the zeros behind a ReLU do, and the
    gradients of deep networks explode. Filters above the highest value that few bits leave are
    clamped to it, for some inputs lie above it, too.

    Returns:
        the filters, and what clamping took from the distances of each, (Cout,).
    """
    filters = quantize_filters(weight, qparams, bits)
    rounded = qparams.to_float(filters.weight)
    beyond = (weight < qparams.low) | (weight > qparams.high)
    if bits < qparams.bits:
        beyond = weight < qparams.low
    values = torch.where(beyond, weight, rounded)
    kept = (values - rounded).abs().flatten(1).sum(1)
    return values, filters.constant.to(weight.dtype) - kept


class FakeQuantAdder(nn.Module):
    """An adder whose forward sees rounded filters; their gradient goes to the filters as it is.

    Attributes:
        grid: what its input is rounded with; the filters take its scale and zero point.
        filter_bits: of the filters, at most those of the input.
        rounds_input: whether it rounds its input itself.
    """

    grid: FakeQuantize
    filter_bits: int
    rounds_input: bool

    def forward(self: Any, input: Tensor) -> Tensor:
        values, constant = rounded_filters(self.weight, self.grid.qparams, self.filter_bits)
        weight = _StraightThrough.apply(self.weight, values, None)
        bias = -constant if self.bias is None else self.bias - constant
        seen = self.grid(input) if self.rounds_input else input
        output: Tensor = self._with_filters(seen, weight, bias)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, filter_bits={self.filter_bits}"


class FakeQuantAdderConv2d(FakeQuantAdder, AdderConv2d):
    """An :class:`AdderConv2d` in quantization-aware training."""


class FakeQuantAdderConv2dSame(FakeQuantAdder, AdderConv2dSame):
    """An :class:`AdderConv2dSame` in quantization-aware training."""


class FakeQuantAdderLinear(FakeQuantAdder, AdderLinear):
    """An :class:`AdderLinear` in quantization-aware training."""


FAKE_ADDERS = {
    AdderConv2d: FakeQuantAdderConv2d,
    AdderConv2dSame: FakeQuantAdderConv2dSame,
    AdderLinear: FakeQuantAdderLinear,
}


def fake_quantized(
    layer: Adder, grid: FakeQuantize, filter_bits: int | None, *, rounds_input: bool
) -> Any:
    """The layer's training form; it holds the layer's very parameters, norm and settings.

    Args:
        filter_bits: None for those of the grid, which are the most.
    """
    fake: Any = copy.copy(layer)
    fake.__class__ = FAKE_ADDERS[type(layer)]
    # Each form has a grid of its own; the parameters stay those of the layer.
    fake._modules = {**layer._modules, "grid": grid}
    bits = grid.qparams.bits
    fake.filter_bits, fake.rounds_input = min(filter_bits or bits, bits), rounds_input
    return fake


def check_no_fakes(model: nn.Module, advice: str) -> None:
    """Raise AdderizeError for a network in quantization-aware training."""
    if any(isinstance(module, (FakeQuantize, FakeQuantAdder)) for module in model.modules()):
        raise AdderizeError(f"the model is one from prepare_qat(): {advice}")
