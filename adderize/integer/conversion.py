"""From a quantized network to an integer-only one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from adderize.arguments import checked_statistics
from adderize.dataflow.graphs import watched
from adderize.errors import AdderizeError
from adderize.integer.affine import split_leaky
from adderize.integer.integer_network import IntegerNetwork
from adderize.integer.layer_shifts import ShiftReport
from adderize.integer.lowered_values import LoweredValues
from adderize.integer.lowering import lower
from adderize.integer.program import Program
from adderize.integer.value import Value
from adderize.models.by_name import own_input_size
from adderize.quantize.calls import carriers
from adderize.quantize.record import quantization_of


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
    """Lower a quantized network to an integer-only one: no float and no multiplication is left.

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
            sums that 32 bits do not hold; rounding that leaves too little of usual values, as of
            several kept layers in a row that were quantized by an earlier version.
    """
    record = quantization_of(quantized)
    if not isinstance(quantized, fx.GraphModule) or record is None:
        remarks = record.report.remarks if record else ()
        reason = [remark for remark in remarks if remark.startswith("layer by layer")]
        raise AdderizeError(
            f"got a {type(quantized).__name__}; expected a network from quantize() that torch.fx "
            "traces: layer by layer, tensors between the layers stay floats"
            + "".join(f". This one was quantized {remark}" for remark in reason)
        )
    known = own_input_size(quantized) if input_size is None else input_size
    size = tuple(map(int, known)) if isinstance(known, Iterable) else ()
    if len(size) != 3:
        raise AdderizeError(
            "the model does not tell its input's size: give input_size=(C, H, W)"
            if known is None
            else f"input_size is {known}; expected (C, H, W)"
        )
    mean, std = checked_statistics(mean, std, size[0])
    body = copy.deepcopy(quantized).cpu().eval()
    split_leaky(body.graph)
    _note_results(body, size)
    zero = 255 * torch.tensor(mean, dtype=torch.float64, device="cpu")
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64, device="cpu"))
    if len(set(zip(mean, std, strict=True))) == 1:
        zero, scale = zero[0], scale[0]
    image = Value.of_bytes(scale, zero, 255)
    values = LoweredValues(size, record.kept_inputs, terms=terms, filter_terms=filter_terms)
    output, logits = lower(body.graph, image, values)
    parts = values.builder.live(output)
    return IntegerNetwork(
        Program(
            **parts,
            mean=mean,
            std=std,
            logit_scale=float(logits.scale),
            logit_zero=float(logits.zero),
            report=ShiftReport(terms, filter_terms, tuple(values.builder.rows)),
        )
    )


def _note_results(network: fx.GraphModule, size: tuple[int, ...]) -> None:
    """The shapes of tensors that come from the images, for two of these, as some operations mix
    images; of all else the values."""
    values = carriers(network.graph)

    def note(node: fx.Node, value: Any) -> None:
        is_tensor = node in values and isinstance(value, Tensor)
        node.meta |= {"shape": tuple(value.shape)} if is_tensor else {"result": value}

    try:
        watched(network, torch.zeros(2, *size, device="cpu", dtype=torch.float32), note)
    except Exception as error:
        raise AdderizeError(f"the network does not take images of {size}: {error}") from error
