"""Layers whose every scale is a sum of a few signed powers of two: shifts and additions.

A scale s stands as T terms, ``s ~ sum_t sign_t 2^exponent_t``, each the power of two nearest to
what the terms before it leave. That costs T shifts and T - 1 additions a value in place of a
multiplication. The layers are for inference; they keep exponents and signs, and compute in float32
what the shifts would, so that PyTorch, its tracers and ONNX see ordinary constants.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.errors import AdderizeError
from adderize.layers.base import effective_geometry
from adderize.layers.powers_of_two import powers_of_two, sum_of_powers, worst_of
from adderize.layers.same import same_padding


class Shifts(nn.Module):
    """Weights as exponents and signs, saved as such.

    Attributes:
        exponents, signs: int8 (T, ...).
        weight: float32, their sums.
        worst_error: the largest relative error of a weight when it was rounded.
    """

    exponents: Tensor
    signs: Tensor
    weight: Tensor
    worst_error = 0.0

    def _hold(self, values: Tensor, terms: int) -> None:
        exponents, signs = powers_of_two(values, terms)
        self.register_buffer("exponents", exponents)
        self.register_buffer("signs", signs)
        self.register_buffer("weight", sum_of_powers(exponents, signs), persistent=False)
        errors = ((self.weight - values.detach()) / values.detach()).abs().nan_to_num(0.0)
        self.worst_error = float(errors.max()) if errors.numel() else 0.0

    def _hold_bias(self, bias: Tensor | None) -> None:
        if bias is not None and not bool(bias.isfinite().all()):
            raise AdderizeError(f"a bias is {worst_of(bias)}; expected finite numbers")
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    @property
    def terms(self) -> int:
        """T, the most powers of two that a weight is made of."""
        return len(self.exponents)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.exponents.is_meta:
            self.weight = sum_of_powers(self.exponents, self.signs)


class _ShiftAddNorm(Shifts):
    """What the norms share: ``y = s x + b`` per channel."""

    bias: Tensor

    def __init__(self, scale: Tensor, bias: Tensor, *, terms: int = 3) -> None:
        super().__init__()
        if scale.dim() != 1 or scale.shape != bias.shape:
            raise AdderizeError(
                f"scale and bias have the shapes {tuple(scale.shape)} and {tuple(bias.shape)}; "
                "expected one value a channel in each"
            )
        self.num_features = len(scale)
        self._hold(scale, terms)
        self._hold_bias(bias)

    @classmethod
    def from_norm(cls, norm: nn.Module, *, terms: int = 3) -> _ShiftAddNorm:
        """A batch norm in evaluation mode with its scale rounded.

        Raises:
            AdderizeError: another norm, or one without running statistics.
        """
        scale, mean, beta = statistics_of_norm(norm)
        # The mean may be a hundred deviations from zero, so it takes the rounded scale.
        form = cls(scale, beta, terms=terms)
        form.bias.sub_(mean * form.weight)
        return form

    def extra_repr(self) -> str:
        return f"{self.num_features}, terms={self.terms}"


class ShiftAddNorm2d(_ShiftAddNorm):
    """A batch norm in evaluation mode, its scale a sum of signed powers of two.

    Args:
        scale, bias: (C,): ``gamma / sigma`` and ``beta - mean gamma / sigma``.
        terms: T, powers of two for each scale.

    Shape:
        (N, C, H, W) or (C, H, W), float32 -> the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return input * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ShiftAddNorm1d(_ShiftAddNorm):
    """The same as :class:`ShiftAddNorm2d` for vectors and sequences.

    Shape:
        (N, C) or (N, C, L), float32 -> the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return (input.transpose(1, -1) * self.weight + self.bias).transpose(1, -1)


class ShiftAddLinear(Shifts):
    """``torch.nn.Linear`` whose weights are sums of signed powers of two.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        terms: T, powers of two for each weight.

    Shape:
        (..., in_features), float32 -> (..., out_features).
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, terms: int = 2) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._hold(weight, terms)
        self._hold_bias(bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, terms={self.terms}"
        )


def statistics_of_norm(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """gamma / sigma, mean and beta of a batch norm, float64 (C,)."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise AdderizeError(
            f"a {type(norm).__name__} divides by statistics of its input; expected a batch norm "
            "with running statistics"
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    mean = norm.running_mean.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    return scale, mean, beta


class ShiftAddConv2d(Shifts):
    """``torch.nn.Conv2d`` whose weights are sums of signed powers of two.

    Args:
        convolution: an ``nn.Conv2d`` (or timm's ``Conv2dSame``); its geometry is taken as it is
            now, its filters rounded.
        terms: T, powers of two for each weight.

    Shape:
        (N, Cin, H, W) or (Cin, H, W), float32 -> (N, Cout, OH, OW) or (Cout, OH, OW).
    """

    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, *, terms: int = 2) -> None:
        super().__init__()
        self.kernel_size: tuple[int, ...] = convolution.kernel_size
        self.geometry, self.around = effective_geometry(convolution)
        self.padding_mode = "constant"
        if convolution.padding_mode != "zeros":
            self.padding_mode = convolution.padding_mode
        self.same = type(convolution).__name__ == "Conv2dSame"
        self._hold(convolution.weight, terms)
        self._hold_bias(convolution.bias)

    def forward(self, input: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        around = self.around
        if self.same:
            around = same_padding(input.shape[-2:], self.kernel_size, stride, dilation)
        if around:
            input = F.pad(input, around, mode=self.padding_mode)
        output: Tensor = torch.conv2d(
            input, self.weight, self.bias, stride, padding, dilation, groups
        )
        return output

    def extra_repr(self) -> str:
        stride, padding, dilation, groups = self.geometry
        return (
            f"{self.weight.shape[1] * groups}, {len(self.weight)}, kernel_size={self.kernel_size}, "
            f"stride={stride}, padding={self.around or padding}, dilation={dilation}, "
            f"groups={groups}, bias={self.bias is not None}, terms={self.terms}"
        )
