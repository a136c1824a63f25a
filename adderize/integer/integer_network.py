"""Networks of integers alone: bytes of an image in, 32-bit logits out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from adderize.errors import AdderizeError
from adderize.integer.fixed_point import Bounds, ShiftEpilogue, checking
from adderize.integer.integer_layers import IntegerProduct
from adderize.integer.layer_shifts import LayerShifts, ShiftReport
from adderize.integer.lowering import Lowering
from adderize.integer.value import Value
from adderize.models.by_name import own_input_size
from adderize.quantize.record import quantization_of


class IntegerNetwork(nn.Module):
    """A network that computes with 8-bit and 32-bit integers, shifts and additions only.

    Made by :func:`to_integer`. It is made for one size of image.

    Attributes:
        body: the layers, a ``torch.fx.GraphModule``.
        input_size: (C, H, W).
        mean, std: of the pixels, those that the float network's inputs were normalised with.
        logit_scale, logit_zero: logits in the float network's unit are
            ``logit_scale * (output - logit_zero)``.

    Shape:
        (N, C, H, W), uint8, the image's raw bytes -> (N, classes), int32.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        input_size: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        output: Value,
        report: ShiftReport,
    ) -> None:
        super().__init__()
        self.body, self.input_size, self.mean, self.std = body, input_size, mean, std
        self.logit_scale, self.logit_zero = float(output.scale), float(output.zero)
        self.report = report

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != self.input_size:
            raise AdderizeError(
                f"the images have shape {tuple(images.shape)} and {images.dtype}; expected the raw "
                f"bytes of (N, {', '.join(map(str, self.input_size))}), uint8"
            )
        output: Tensor = self.body(images)
        return output.to(torch.int32)

    def reference(self, images: Tensor) -> Tensor:
        """The same in int64, every shift made, and every partial sum looked at.

        Raises:
            OverflowError: a sum left 32 bits: the proof of the fraction bits is wrong.
        """
        with checking():
            result: Tensor = self(images)
        return result

    def logits(self, images: Tensor) -> Tensor:
        """The logits in the float network's unit, float32 (N, classes)."""
        integers: Tensor = self(images)
        return (integers - self.logit_zero) * self.logit_scale


@torch.no_grad()
def to_integer(
    quantized: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    input_size: Sequence[int] | None = None,
    terms: int = 3,
    filter_terms: int = 3,
) -> IntegerNetwork:
    """Lower a quantized network to integers alone: no float and no multiplication is left.

    Every change of scale becomes shifts and additions, ``y = clamp((sum +-(acc << shift) + bias)
    >> fraction, low, high)``. The number of fraction bits of each layer is the largest with which
    32 bits hold every partial sum for every possible input: it follows from the filters, not from
    samples. The pixels' mean and deviation go into the first layer.

    Args:
        quantized: what :func:`adderize.quantize.quantize` returned for a network that torch.fx
            traces; it is left as it is.
        mean, std: per channel, of pixels in [0, 1]: how the float network's inputs were normalised.
        input_size: (C, H, W); by default the model's own.
        terms: powers of two for a scale.
        filter_terms: powers of two for a weight of a kept convolution or linear layer.

    Raises:
        AdderizeError: a network that is not quantized, or layer by layer; no input size; statistics
            that do not fit the channels; operations without a form in integers, which are named;
            sums that 32 bits do not hold.
    """
    if not isinstance(quantized, fx.GraphModule) or quantization_of(quantized) is None:
        raise AdderizeError(
            f"got a {type(quantized).__name__}; expected a network from quantize() that torch.fx "
            "traces: layer by layer, tensors between the layers stay floats"
        )
    size = tuple(input_size or own_input_size(quantized) or ())
    if len(size) != 3:
        raise AdderizeError(f"input_size is {size or None}; expected (C, H, W)")
    if len(mean) != size[0] or len(std) != size[0] or min(std) <= 0:
        raise AdderizeError(
            f"mean is {tuple(mean)} and std {tuple(std)}; expected {size[0]} of each, std above 0"
        )
    body = copy.deepcopy(quantized).cpu()
    _note_shapes(body, size)
    zero = 255 * torch.tensor(mean, dtype=torch.float64, device="cpu")
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64, device="cpu"))
    if len(set(zip(mean, std, strict=True))) == 1:
        zero, scale = zero[0], scale[0]
    image = Value(scale, zero, Bounds.of(0, 255), True)
    lowering = Lowering(body, image, terms=terms, filter_terms=filter_terms)
    if lowering.refused:
        raise AdderizeError(f"no form in integers: {'; '.join(lowering.refused[:5])}")
    report = ShiftReport(terms, filter_terms, tuple(_rows(body)))
    network = IntegerNetwork(body, size, tuple(mean), tuple(std), lowering.output, report)
    return network.eval().requires_grad_(False)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def _note_shapes(network: fx.GraphModule, size: tuple[int, ...]) -> None:
    try:
        _Shapes(network).run(torch.zeros(1, *size, device="cpu", dtype=torch.float32))
    except Exception as error:
        raise AdderizeError(f"the network does not take images of {size}: {error}") from error


def _rows(body: nn.Module) -> list[LayerShifts]:
    rows = []
    for name, module in body.named_modules():
        if isinstance(module, (ShiftEpilogue, IntegerProduct)):
            layer = name.removesuffix(".epilogue")
            kind = type(body.get_submodule(layer)).__name__
            scales = module.shifts[0].numel()
            rows.append(LayerShifts(layer, kind, scales, module.terms, module.worst_error))
    return rows
