"""Adder layers with the constructors, attributes and state-dict keys of torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adderize.functional import adder_conv2d, adder_linear
from adderize.layers import scripted
from adderize.layers.base import ConvLayer, PaddingMode, check_filter_dtype
from adderize.layers.batches import as_batch, normed
from adderize.layers.fusion import NotFusible
from adderize.ops.gradients import check_gradient

_AUTHORS_KEYS = {"adder": "weight", "b": "bias"}


def rename_authors_keys(state_dict: dict[str, Any], prefix: str) -> None:
    """Give a layer's entries of a state dict of the authors' code the names of torch's layers."""
    for old, new in _AUTHORS_KEYS.items():
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


class _AdderLayer(NotFusible):
    """What both adder layers share: how filters start, gradient modes, the authors' checkpoints."""

    def _set_gradient(self, gradient: str) -> None:
        check_gradient(gradient)
        self.gradient = gradient

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)  # type: ignore[arg-type]
        if self.bias is not None:
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def _gradient_mode(self) -> str:
        return "" if self.gradient == "full" else f", gradient={self.gradient!r}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rename_authors_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class AdderConv2d(_AdderLayer, ConvLayer):
    """Adder convolution: the negative L1 distance between filters and patches.

    Constructor, attributes and state-dict keys are those of ``torch.nn.Conv2d``; see
    :func:`adderize.functional.adder_conv2d` for the mathematics. Filters start from N(0, 1) without
    fan scaling and the bias from zero (Chen et al., AdderNet, CVPR 2020). Checkpoints of the
    authors' code (keys ``adder`` and ``b``) load with a plain strict ``load_state_dict``.

    Stride, padding, dilation, groups and padding mode may be assigned later, as integers, pairs or
    strings. ``torch.jit.script`` takes the layer for inference (``import adderize.layers`` before
    ``torch.jit.load``); torch has deprecated TorchScript: prefer ``torch.export``.

    Args:
        gradient: ``"full"`` (default), ``"sign"`` or ``"sign_input"``, as in
            :func:`adderize.functional.adder_conv2d`.
        All others: as in ``torch.nn.Conv2d``.

    Attributes:
        norm: an optional normalisation layer applied to the output, as a batch of one where it is
            a single image; None by default, a ``BatchNorm2d`` where
            ``adderize(model, norm="insert")`` put one.

    Shape:
        (N, Cin, H, W) or (Cin, H, W) -> (N, Cout, OH, OW) or (Cout, OH, OW), float32.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gradient: str = "full",
    ) -> None:
        geometry = (stride, padding, dilation, groups)
        options = (bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, kernel_size, *geometry, *options)
        self._set_gradient(gradient)

    def forward(self, input: Tensor) -> Tensor:
        if scripted.is_scripting():
            output = scripted.adder_conv2d(
                input,
                self.weight,
                self.bias,
                self.stride,
                self._scripted_pads(input),
                self.dilation,
                self.groups,
                self._scripted_mode(),
                self.gradient,
            )
            if self.norm is not None:
                output = self.norm(as_batch(output)).view_as(output)
            return output
        return self._with_filters(input, self.weight, self.bias)

    def _with_filters(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        geometry = (self.stride, padding, self.dilation, self.groups)
        output = adder_conv2d(input, weight, bias, *geometry, gradient=self.gradient)
        if self.norm is None:
            return output
        return normed(self, self.norm, as_batch(output)).view_as(output)

    def extra_repr(self) -> str:
        return super().extra_repr() + self._gradient_mode()


class AdderLinear(_AdderLayer):
    """Adder form of ``torch.nn.Linear``: the negative L1 distance between filters and input rows.

    See :func:`adderize.functional.adder_linear`. Filters start from N(0, 1), the bias from zero.

    Attributes:
        norm: an optional normalisation layer applied to the output, as in :class:`AdderConv2d`;
            it sees the output as (rows, out_features).

    Shape:
        (..., in_features) -> (..., out_features), float32.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gradient: str = "full",
    ) -> None:
        super().__init__()
        check_filter_dtype(dtype)
        self._set_gradient(gradient)
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty((out_features, in_features), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.norm: nn.Module | None = None
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        if scripted.is_scripting():
            output = scripted.adder_linear(input, self.weight, self.bias, self.gradient)
            if self.norm is not None:
                output = self.norm(output.reshape(-1, self.out_features)).view_as(output)
            return output
        return self._with_filters(input, self.weight, self.bias)

    def _with_filters(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = adder_linear(input, weight, bias, gradient=self.gradient)
        if self.norm is None:
            return output
        return normed(self, self.norm, output.reshape(-1, self.out_features)).view_as(output)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}{self._gradient_mode()}"
