"""What the convolution-like layers share: torch's constructor, an optional norm, geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adderize.errors import AdderizeError
from adderize.layers import scripted
from adderize.ops.geometry import Geometry, as_integer, as_pair, resolve

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def check_filter_dtype(dtype: torch.dtype | None) -> None:
    """Raise AdderizeError for filters that are neither float32 nor float64."""
    if (dtype or torch.get_default_dtype()) not in (torch.float32, torch.float64):
        raise AdderizeError(
            f"dtype is {dtype or torch.get_default_dtype()}; filters of adder and binary layers "
            "are float32 (or float64): use mixed precision for speed"
        )


class ConvLayer(_ConvNd):
    """The constructor, attributes and state-dict keys of ``torch.nn.Conv2d``, and a child ``norm``.

    It derives from what ``torch.nn.Conv2d`` derives from, and not from that class: torch would
    apply a convolution's arithmetic to it (fusion of batch norms, quantization).

    Attributes:
        pads_by_size: whether the padding follows from the size of each input.
    """

    pads_by_size = False

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
    ) -> None:
        check_filter_dtype(dtype)
        super().__init__(
            in_channels,
            out_channels,
            as_pair(kernel_size, "kernel_size"),
            as_pair(stride, "stride"),
            padding if isinstance(padding, str) else as_pair(padding, "padding"),
            as_pair(dilation, "dilation"),
            False,
            (0, 0),
            as_integer(groups, "groups"),
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.norm: nn.Module | None = None

    def extra_repr(self) -> str:
        """As of ``torch.nn.Conv2d``, which knows no integers in place of pairs."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        for name, value in usual.items():
            if getattr(self, name) != value:
                text += f", {name}={getattr(self, name)}"
        if self.bias is None:
            text += ", bias=False"
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"

    def _padded(self, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
        """The input with all padding but zeros around it, and the padding that is left."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, effective_geometry(self)[1], mode=self.padding_mode), 0

    def _scripted_mode(self) -> str:
        return self.padding_mode

    def _scripted_pads(self, input: Tensor) -> list[int]:
        if isinstance(self.padding, str):
            return scripted.pads_by_name(self.padding, self.weight, self.dilation)
        return scripted.pads_around(self.padding)


def effective_geometry(layer: _ConvNd) -> tuple[Geometry, list[int]]:
    """The geometry that a layer's forward computes with, as its attributes say now.

    Stride, padding, dilation, groups and padding mode may have been assigned after construction,
    as integers, pairs or strings. The padding of a layer with ``pads_by_size`` comes on top: it
    depends on the input, see :func:`adderize.layers.same.same_padding`.

    Args:
        layer: a two-dimensional convolution, or a layer of this package that stands for one.

    Returns:
        the geometry of the op, and what is put around the images before, in the layer's padding
        mode: left, right, top, bottom, as ``F.pad`` takes it; empty where the op pads with zeros.

    Raises:
        AdderizeError: attributes that no forward takes.
    """
    by_size = getattr(layer, "pads_by_size", False)
    padding: str | int | tuple[int, ...] = 0 if by_size else layer.padding
    # torch.fx has a stand-in without sizes in the weight's place.
    kernel = layer.weight.shape[2:] if isinstance(layer.weight, Tensor) else layer.kernel_size
    geometry, beyond = resolve(kernel, layer.stride, padding, layer.dilation, layer.groups)
    if by_size or (layer.padding_mode == "zeros" and not any(beyond)):
        return geometry, []
    (vertical, horizontal), (bottom, right) = geometry.padding, beyond
    pads = [horizontal, horizontal + right, vertical, vertical + bottom]
    return geometry.padded(0, 0), pads


def pads_with_zeros(layer: nn.Module) -> bool:
    """Whether zeros may come around a layer's input, as its attributes say now."""
    if getattr(layer, "pads_by_size", False):
        return True
    if not isinstance(layer, _ConvNd) or layer.transposed or layer.padding_mode != "zeros":
        return False
    padding: object = layer.padding
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(padding) if isinstance(padding, Sequence) else bool(padding)
