"""Adder layers on bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.layers import Adder, AdderConv2d, AdderConv2dSame, AdderLinear, effective_geometry
from adderize.layers.same import same_padding
from adderize.ops.bytes import pack, unpack
from adderize.ops.formats import is_channels_last
from adderize.quantize.qparams import QParams, quantize_filters


@dataclass(frozen=True)
class Epilogue:
    """What happens to a layer's distances before they leave the kernel.

    ``clamp(gain * y + offset + residual, low, high)``, as bytes where the output has parameters.

    Attributes:
        gain, offset: float64 (Cout,): the batch norms; the layer's bias is added before.
        low, high: the activation.
        residual: the parameters of the bytes that are added, or None.
        output: those of the result, or None for float32.
        filter_bits: of the layer's filters; None for those of its input.
    """

    gain: Tensor
    offset: Tensor
    low: float = -math.inf
    high: float = math.inf
    residual: QParams | None = None
    output: QParams | None = None
    filter_bits: int | None = None


class QuantAdder(nn.Module):
    """An adder layer on bytes: the filters and the epilogue that both kinds have."""

    packed: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, groups: int, qparams: QParams, epilogue: Epilogue
    ) -> None:
        super().__init__()
        filters = quantize_filters(weight, qparams, epilogue.filter_bits)
        output = epilogue.output or QParams(1.0, 0, 8)
        offset = -filters.constant if bias is None else bias.detach().double() - filters.constant
        shift = (epilogue.gain * offset + epilogue.offset) / output.scale + output.zero_point
        residual = epilogue.residual
        self.residual_scale = residual.scale / output.scale if residual else 0.0
        if residual:
            shift = shift - self.residual_scale * residual.zero_point
        self.weight_shape, self.groups = list(weight.shape), groups
        self.register_buffer("packed", pack(filters.weight, groups))
        self.register_buffer("scale", (epilogue.gain * (-qparams.scale / output.scale)).float())
        self.register_buffer("shift", shift.float())
        self.qparams, self.residual_qparams = qparams, residual
        self.output_qparams = epilogue.output
        self.clamped = float(filters.clamped)
        # Where nothing is padded, a zero point may lie outside the bytes, and nobody reads it.
        self.zero_point = min(max(qparams.zero_point, 0), qparams.levels)
        self.low, self.high = epilogue.low, epilogue.high
        if epilogue.output:
            self.low, self.high = (float(output.nearest(end)) for end in (self.low, self.high))

    @property
    def weight(self) -> Tensor:
        """The filters, uint8 (Cout, Cin/groups, kh, kw)."""
        return unpack(self.packed, self.weight_shape, self.groups)

    # Filters are saved in plain order: the kernels' order is not a file format.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "packed"]
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(prefix + "weight", self.scale)
        if weight.dtype == torch.uint8 and list(weight.shape) == self.weight_shape:
            del state_dict[prefix + "weight"]
            state_dict[prefix + "packed"] = pack(weight, self.groups)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # Scales and zero points also stand in the graph around: they are compared, not loaded.

    def get_extra_state(self) -> Tensor:
        parts = (self.qparams, self.output_qparams, self.residual_qparams)
        numbers = [n for q in parts for n in ((q.scale, q.zero_point, q.bits) if q else (0, 0, 0))]
        return torch.tensor([*numbers, self.low, self.high], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise AdderizeError(
                "the state dict is of a network with other scales, as another calibration gives "
                "them, and would compute something else here: save_model() and load_model() keep "
                "an 8-bit network with its scales"
            )

    def _bytes(self, input: Tensor) -> Tensor:
        return input if input.dtype == torch.uint8 else self.qparams.to_bytes(input)

    def _computed(
        self,
        q: Tensor,
        residual: Tensor | None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
    ) -> Tensor:
        """(N, Cin, H, W), uint8 -> (N, Cout, OH, OW), epilogue included."""
        output: Tensor = torch.ops.adderize.adder_conv2d_u8_packed(
            q, self.packed, self.weight_shape, self.scale, self.shift, residual,
            self.residual_scale, self.zero_point, stride, padding, dilation, self.groups,
            self.low, self.high, self.output_qparams is None,
        )  # fmt: skip
        return output

    def _qparams(self) -> str:
        texts = [f"zero_point={self.qparams.zero_point}, step={self.qparams.scale:.3g}"]
        if self.residual_qparams:
            texts.append("residual")
        texts.append("to bytes" if self.output_qparams else "to float32")
        return ", ".join(texts)


class QuantAdderConv2d(QuantAdder):
    """An :class:`AdderConv2d` in integers, with what follows it.

    Input and filters are bytes of one scale and zero point, ``x = s * (q - zero_point)``; their
    distance is exact in 32-bit integers. Bias, batch norms, residual addition, activation and the
    rounding to the output's bytes are one affine map of it per channel::

        clamp(scale * sum |q - weight| + shift + residual_scale * residual, low, high)

    Made by :func:`adderize.quantize.quantize`.

    Attributes:
        weight: uint8 (Cout, Cin/groups, kh, kw).
        scale, shift: float32 (Cout,), the affine map.
        residual_scale: of the bytes that are added; 0 where none are.
        low, high: what the result is clamped to; integers where it is bytes.
        qparams, residual_qparams, output_qparams: scale, zero point and bits of the input and the
            filters, of the bytes that are added, and of the result; None where there are none.

    Shape:
        (N, Cin, H, W) or (Cin, H, W), uint8, or floats, which become bytes by ``qparams``
        -> (N, Cout, OH, OW) or (Cout, OH, OW), uint8, or float32 without ``output_qparams``.
    """

    def __init__(self, layer: AdderConv2d, qparams: QParams, epilogue: Epilogue) -> None:
        geometry, around = effective_geometry(layer)
        super().__init__(layer.weight, layer.bias, geometry.groups, qparams, epilogue)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size = layer.kernel_size
        self.padding_mode = layer.padding_mode
        self.same = isinstance(layer, AdderConv2dSame)
        self.around = around
        self.stride, self.padding, self.dilation = map(list, geometry[:3])
        self.gives_channels_last = is_channels_last(layer.weight)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if input.dim() == 3:
            batch = None if residual is None else residual.unsqueeze(0)
            return self.forward(input.unsqueeze(0), batch).squeeze(0)
        q = self._padded(self._bytes(input))
        output = self._computed(q, residual, self.stride, self.padding, self.dilation)
        # Bytes stay as the kernels give them, floats are laid out as those of the float layer.
        if torch.uint8 in (input.dtype, output.dtype) or self.gives_channels_last:
            return output
        return output if is_channels_last(input) else output.contiguous()

    def _padded(self, q: Tensor) -> Tensor:
        if self.same:
            pads = same_padding(q.shape[-2:], self.kernel_size, self.stride, self.dilation)
            q = F.pad(q, pads, value=self.zero_point)
        if not any(self.around):
            return q
        if self.padding_mode == "zeros":
            return F.pad(q, self.around, value=self.zero_point)
        return F.pad(q, self.around, mode=self.padding_mode)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={tuple(self.stride)}"
        )
        return f"{text}, groups={self.groups}, {self._qparams()}"


class QuantAdderLinear(QuantAdder):
    """An :class:`AdderLinear` in integers, with what follows it; see :class:`QuantAdderConv2d`.

    Shape:
        (..., in_features), uint8 or floats -> (..., out_features), uint8 or float32.
    """

    def __init__(self, layer: AdderLinear, qparams: QParams, epilogue: Epilogue) -> None:
        super().__init__(layer.weight[:, :, None, None], layer.bias, 1, qparams, epilogue)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if input.shape[-1] != self.in_features:
            raise AdderizeError(
                f"the input has shape {tuple(input.shape)}; expected (..., {self.in_features})"
            )
        rows = self._bytes(input).reshape(-1, self.in_features, 1, 1)
        if residual is not None:
            residual = residual.reshape(-1, self.out_features, 1, 1)
        output = self._computed(rows, residual)
        return output.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._qparams()}"


def quantized_layer(layer: Adder, qparams: QParams, epilogue: Epilogue) -> QuantAdder:
    """An adder layer on bytes; its own norm is the epilogue's business."""
    kind = QuantAdderLinear if isinstance(layer, AdderLinear) else QuantAdderConv2d
    return kind(layer, qparams, epilogue).eval()  # type: ignore[arg-type]
