"""Adder layers with the constructors, attributes and state-dict keys of torch's own."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _pair

from adderize.errors import AdderizeError
from adderize.functional import adder_conv2d, adder_linear
from adderize.ops._shapes import GRADIENTS

_AUTHORS_KEYS = {"adder": "weight", "b": "bias"}


def check_filter_dtype(dtype: torch.dtype | None) -> None:
    if (dtype or torch.get_default_dtype()) not in (torch.float32, torch.float64):
        raise AdderizeError(
            f"dtype is {dtype or torch.get_default_dtype()}; filters of adder and binary layers "
            "are float32 (or float64): use mixed precision for speed"
        )


def _check_gradient(gradient: str) -> str:
    if gradient not in GRADIENTS:
        raise AdderizeError(f"gradient is {gradient!r}; expected 'full' or 'sign'")
    return gradient


def _rename_authors_keys(state_dict: dict[str, Any], prefix: str) -> None:
    for old, new in _AUTHORS_KEYS.items():
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


class AdderConv2d(_ConvNd):
    """Adder convolution: the negative L1 distance between filters and patches.

    Constructor, attributes and state-dict keys are those of ``torch.nn.Conv2d``; see
    :func:`adderize.functional.adder_conv2d` for the mathematics. Filters start from N(0, 1) without
    fan scaling and the bias from zero (Chen et al., AdderNet, CVPR 2020). Checkpoints of the
    authors' code (keys ``adder`` and ``b``) load with a plain strict ``load_state_dict``.

    Args:
        gradient: ``"full"`` (default) or ``"sign"``, the paper's ablation.
        All others: as in ``torch.nn.Conv2d``.

    Attributes:
        norm: an optional normalisation layer applied to the output; None by default,
            a ``BatchNorm2d`` where ``adderize(model, norm="insert")`` put one.

    Shape:
        (N, Cin, H, W) or (Cin, H, W) -> (N, Cout, OH, OW) or (Cout, OH, OW), float32.
    """

    norm: nn.Module | None

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
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gradient: str = "full",
    ) -> None:
        check_filter_dtype(dtype)
        self.gradient = _check_gradient(gradient)
        super().__init__(
            in_channels,
            out_channels,
            _pair(kernel_size),
            _pair(stride),
            padding if isinstance(padding, str) else _pair(padding),
            _pair(dilation),
            False,
            _pair(0),
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.norm = None

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        output = adder_conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            gradient=self.gradient,
        )
        return output if self.norm is None else self.norm(output)

    def extra_repr(self) -> str:
        text = str(_ConvNd.extra_repr(self))
        return text if self.gradient == "full" else f"{text}, gradient={self.gradient!r}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _rename_authors_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class AdderLinear(nn.Module):
    """Adder form of ``torch.nn.Linear``: the negative L1 distance between filters and input rows.

    See :func:`adderize.functional.adder_linear`. Filters start from N(0, 1), the bias from zero.

    Attributes:
        norm: an optional normalisation layer applied to the output, as in :class:`AdderConv2d`;
            it sees the output as (rows, out_features).

    Shape:
        (..., in_features) -> (..., out_features), float32.
    """

    norm: nn.Module | None

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
        self.gradient = _check_gradient(gradient)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(
            torch.empty((out_features, in_features), device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.norm = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        output = adder_linear(input, self.weight, self.bias, gradient=self.gradient)
        if self.norm is None:
            return output
        normed: Tensor = self.norm(output.reshape(-1, self.out_features))
        return normed.view_as(output)

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
        return text if self.gradient == "full" else f"{text}, gradient={self.gradient!r}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _rename_authors_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
