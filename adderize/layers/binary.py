"""BinaryConv2d: the binary networks that adder networks are compared with."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _pair

from adderize.functional import binary_conv2d
from adderize.layers.adder import check_filter_dtype


class BinaryConv2d(_ConvNd):
    """XNOR-Net's convolution: signs of the input with scaled signs of the filters.

    Constructor, attributes, initialisation and state-dict keys are those of ``torch.nn.Conv2d``;
    the filters are real numbers whose signs are taken anew in every forward pass. See
    :func:`adderize.functional.binary_conv2d` for the mathematics and the gradients.

    An input that is all positive, as behind a ReLU, has no signs to speak of. XNOR-Net therefore
    normalises right before the signs: norm, sign, convolution.

    Attributes:
        norm: an optional normalisation layer applied to the input; None by default,
            a ``BatchNorm2d`` where ``binarize(model, norm="insert")`` put one.

    Shape:
        (N, Cin, H, W) or (Cin, H, W) -> (N, Cout, OH, OW) or (Cout, OH, OW).
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
    ) -> None:
        check_filter_dtype(dtype)
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

    def forward(self, input: Tensor) -> Tensor:
        if self.norm is not None:
            input = self.norm(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return binary_conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )
