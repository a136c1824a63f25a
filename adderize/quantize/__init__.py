"""8-bit inference: adder networks in integers.

Filters outside an adder's input range are clamped to it exactly, at the price of a constant per
channel; input and filters share scale and zero point, so that their distance is an integer; batch
norm, residual addition, activation and the next layer's bytes are one affine map behind it.

A network goes one way: :mod:`prepare` (a graph of plain calls), :mod:`fuse` (what follows an adder
becomes part of it), :mod:`observe` (ranges on calibration data, and the qparams that follow),
:mod:`convert` (layers on bytes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from adderize.arguments import check_module, check_switch
from adderize.dataflow.undisturbed import restored
from adderize.errors import AdderizeError
from adderize.quantize.aware import (
    check_same_ranges,
    preparation_of,
    prepare_qat,
    prepared_network,
)
from adderize.quantize.byte_layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.quantization_report import LayerReport, QuantizationReport, layer_report
from adderize.quantize.record import Quantization, finished, quantization_of
from adderize.quantize.start import Ranges, observed

__all__ = [
    "LayerReport",
    "QuantAdderConv2d",
    "QuantAdderLinear",
    "QuantizationReport",
    "prepare_qat",
    "quantize",
    "quantize_report",
]


@torch.no_grad()
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    bits: int = 8,
    filter_bits: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Put the adder layers of a trained network into integers.

    Where torch.fx can trace the network, its adders hand bytes to each other: batch norms with
    statistics, residual additions, ReLUs and clamps become part of the adders; max pooling,
    concatenation and reshaping work on bytes. Where it cannot, each adder quantizes its own input
    and gives float32. Kept convolutions, classifiers and all else stay float32.

    The filters are clamped to the range of each layer's input without changing any distance
    (lossless clamping, NeurIPS 2022); input and filters are then rounded with one scale and zero
    point (shared scale, arXiv 2101.10015). At inference inputs outside the calibrated range
    saturate, and NaN, which no byte holds, becomes the lowest value.

    While a model is traced, torch.fx patches ``nn.Module`` for the whole process: let no other
    thread call or trace any model meanwhile.

    Args:
        model: a float32 network with adders; what ``model(inputs)`` computes in evaluation mode
            is what counts, forward hooks included. It is left as it is. One from
            :func:`prepare_qat` keeps the scales and the bits that it was trained with.
        calibration: batches as a DataLoader gives them: tensors, or tuples and lists whose first
            element is the input; or one tensor, a single batch. A few hundred images from the
            training set will do.
        method: how a tensor's range follows from its values. ``"minmax"``: from the smallest to the
            largest; ``"percentile"``: without 0.01 % of the values at each end; ``"mse"``: with the
            ends cut where that rounds the values with a smaller mean squared error.
        bits: of inputs and filters, 2 to 8. Tensors that are only added stay at 8.
        filter_bits: of the filters where they have fewer, 1 to `bits`: of the bytes only 2^n evenly
            spread ones are used.
        inplace: use the model's own modules instead of copies; the model is then spent, and only
            the returned one is of use.

    Returns:
        the quantized network in evaluation mode: a ``torch.fx.GraphModule``, or the model's own
        class where it cannot be traced. :func:`quantize_report` tells what became of each layer;
        ``save_model``, ``torch.compile`` and ``torch.export`` take it.

    Raises:
        AdderizeError: no adders, or none that is called; a wrapped, compiled, half-precision or
            already quantized model, or one that cannot be copied; calibration data that is empty,
            not finite or does not fit the model; unknown options.
    """
    check_module(model)
    check_switch("inplace", inplace)
    ranges = check_same_ranges(Ranges(method, bits, filter_bits), model)
    if preparation_of(model) is None:
        start = observed(model, calibration, ranges, inplace=inplace)
    else:
        start = prepared_network(model, calibration, inplace=inplace)
    network = start.network
    quantized = network.convert(start.qparams)
    with restored(quantized):
        given = network.outputs(start.few)
    layers = tuple(
        layer_report(name, quantized.get_submodule(name), fusion, given, start.expected)
        for fusion, name in network.layers().items()
    )
    report = QuantizationReport(ranges.method, ranges.bits, layers, start.remarks)
    return finished(
        quantized,
        Quantization(
            report, start.qparams, network.absorbed, network.apart, start.entries, network.hooked,
            start.settings, network.kept_inputs,
        ),
    )  # fmt: skip


def quantize_report(model: nn.Module) -> QuantizationReport:
    """What became of each layer of a quantized network; prints as a table.

    Raises:
        AdderizeError: the model does not come from :func:`quantize` or ``load_model``.
    """
    check_module(model)
    record = quantization_of(model)
    if record is None:
        raise AdderizeError("the model is not quantized: pass what quantize() returned")
    return record.report
