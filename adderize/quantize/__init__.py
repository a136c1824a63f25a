"""8-bit inference: adder networks in integers.

Filters outside an adder's input range are clamped to it exactly, at the price of a constant per
channel; input and filters share one grid of bytes, so that their distance is an integer; batch
norm, residual addition, activation and the next layer's grid are one affine map behind it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.quantize import layerwise
from adderize.quantize.calibration import METHODS, ValueRange, calibration_inputs, named_failures
from adderize.quantize.flow import pads_with_zeros
from adderize.quantize.graph import why_float
from adderize.quantize.grid import Grid
from adderize.quantize.layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.network import TracedNetwork, fits_shapes
from adderize.quantize.record import Quantization, finished, quantization_of
from adderize.quantize.report import LayerReport, QuantizationReport, layer_report
from adderize.surgery.checks import check_model
from adderize.surgery.entries import converted_entries
from adderize.surgery.policy import check_switch

__all__ = [
    "LayerReport",
    "QuantAdderConv2d",
    "QuantAdderLinear",
    "QuantizationReport",
    "quantize",
    "quantize_report",
]

_COMPARED_IMAGES = 4


@torch.no_grad()
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    bits: int = 8,
    inplace: bool = False,
) -> nn.Module:
    """Put the adder layers of a trained network into integers.

    Where torch.fx can trace the network, its adders hand bytes to each other: batch norms with
    statistics, residual additions, ReLUs and clamps become part of the adders; max pooling,
    concatenation and reshaping work on bytes. Where it cannot, each adder quantises its own input
    and gives float32. Kept convolutions, classifiers and all else stay float32.

    The filters are clamped to the range of each layer's input without changing any distance
    (lossless clamping, NeurIPS 2022), input and filters then rounded to one grid (shared scale,
    arXiv 2101.10015). At inference inputs outside the calibrated range saturate.

    Args:
        model: a float32 network with adders; its evaluation mode is what counts.
        calibration: batches as a DataLoader gives them: tensors, or tuples and lists whose first
            element is the input; or one tensor, a single batch. A few hundred images from the
            training set will do.
        method: how a tensor's grid follows from its values. ``"minmax"``: from the smallest to the
            largest; ``"percentile"``: without 0.01 % of the values at each end; ``"mse"``: with the
            ends cut where that rounds the values with a smaller mean squared error.
        bits: of inputs and filters, 2 to 8. Tensors that are only added stay at 8.
        inplace: use the model's own modules instead of copies; the model is then spent, and only
            the returned one is of use.

    Returns:
        the quantised network in evaluation mode: a ``torch.fx.GraphModule``, or the model's own
        class where it cannot be traced. :func:`quantize_report` tells what became of each layer;
        ``save_model``, ``torch.compile`` and ``torch.export`` take it.

    Raises:
        AdderizeError: no adders, or none that is called; a wrapped, compiled, half-precision or
            already quantised model; calibration data that is empty, not finite or does not fit the
            model; unknown options.
    """
    _check(model, method, bits)
    check_switch("inplace", inplace)
    model = (model if inplace else copy.deepcopy(model)).eval()
    device = next(model.parameters()).device
    batches = calibration_inputs(calibration, device)
    first = next(batches)
    network, reason = _traced(model, first)
    job = _Job(model, first, itertools.chain([first], batches), method, bits)
    if network is None:
        return job.layer_by_layer(f"layer by layer, since it cannot be traced: {reason}")
    return job.as_network(network)


def quantize_report(model: nn.Module) -> QuantizationReport:
    """What became of each layer of a quantised network; prints as a table.

    Raises:
        AdderizeError: the model does not come from :func:`quantize` or ``load_model``.
    """
    record = quantization_of(model)
    if record is None:
        raise AdderizeError("the model is not quantised: pass what quantize() returned")
    return record.report


def _check(model: nn.Module, method: str, bits: int) -> None:
    if method not in METHODS:
        raise AdderizeError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise AdderizeError(f"bits is {bits!r}; expected an integer from 2 to 8")
    check_model(model)
    if any(isinstance(layer, (QuantAdderConv2d, QuantAdderLinear)) for layer in model.modules()):
        raise AdderizeError("the model is quantised already: quantise the float model")
    if not any(isinstance(layer, (AdderConv2d, AdderLinear)) for layer in model.modules()):
        raise AdderizeError("the model has no adder layers: convert and train it first (adderize)")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise AdderizeError(f"{name} is on the meta device and has no values")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise AdderizeError(f"{name} has {tensor.dtype}; expected float32: use model.float()")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdderizeError(f"{name} holds NaN or infinity; expected finite weights")


def _traced(model: nn.Module, inputs: Tensor) -> tuple[TracedNetwork | None, str]:
    """The network as a graph that computes what the model does, or why there is none."""
    with named_failures("the first calibration batch"):
        expected = model(inputs.clone())  # a model may change its input in place
    if layerwise.adders_of(model).keys() == {""}:
        return None, "it is a single layer"
    try:
        network = TracedNetwork(model)
        output = network.watch_shapes(inputs)
    except Exception as error:
        return None, " ".join(str(error).split())[:200] or type(error).__name__
    difference = _difference(output, expected)
    # A deep network may turn differences in the last digit into large ones.
    if difference > 1e-3 and difference > 10 * _difference(model(inputs * (1 + 1e-6)), expected):
        return None, "the traced network computes something else"
    return network, ""


def _few(model: nn.Module, inputs: Tensor) -> Tensor:
    """Some images of a batch; all of it where the model takes no part, as of a single image."""
    try:
        model(inputs[:_COMPARED_IMAGES].clone())
    except Exception:
        return inputs
    return inputs[:_COMPARED_IMAGES]


def _difference(output: Any, expected: Any) -> float:
    """The largest one of any tensor, as a share of its largest value."""
    found, wanted = (
        [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
        for tree in (output, expected)
    )
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
        return math.inf
    shares = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
        for a, b in zip(found, wanted, strict=True)
        if b.is_floating_point() and b.numel()
    ]
    return max((math.inf if math.isnan(share) else share for share in shares), default=0.0)


class _Job:
    """One quantisation, in either of its two ways."""

    def __init__(
        self, model: nn.Module, first: Tensor, batches: Iterator[Tensor], method: str, bits: int
    ) -> None:
        self.model, self.first, self.batches = model, _few(model, first), batches
        self.method, self.bits = method, bits
        try:
            self.converted: dict[str, dict[str, Any]] | None = converted_entries(model)
        except AdderizeError:
            self.converted = None
        self.remarks = [
            f"{name} stays float32: {why_float(layer)}"
            for name, layer in model.named_modules()
            if isinstance(layer, (AdderConv2d, AdderLinear)) and why_float(layer)
        ]

    def as_network(self, network: TracedNetwork) -> nn.Module:
        network.plan(fits_shapes)
        called = {chain.layer for chain in network.chains}
        self._note_uncalled(called)
        expected = network.chain_outputs(self.first)
        ranges = network.observe(self.batches)
        apart = network.part(ranges)
        grids = {
            group.name: ValueRange.union(ranges[node] for node in group.read).grid(
                self.method, self.bits if group.inputs else 8, with_zero=group.with_zero
            )
            for group in network.flow.groups.values()
        }
        absorbed = network.absorbed()
        fused = {chain: chain.fused for chain in network.chains}
        layers = network.rewrite(grids)
        given = network.layer_outputs(self.first)
        reports = [
            layer_report(
                name, network.traced.get_submodule(name), fused[chain], given[name],
                expected[chain.call.name],
            )
            for chain, name in layers.items()
        ]  # fmt: skip
        return self._finished(network.traced, reports, grids, absorbed, apart)

    def layer_by_layer(self, remark: str) -> nn.Module:
        adders = layerwise.adders_of(self.model)
        ranges = layerwise.observe(self.model, self.batches)
        self._note_uncalled({adders[name] for name in ranges})
        expected = layerwise.layer_outputs(self.model, ranges, self.first)
        grids = {
            name: seen.grid(self.method, self.bits, with_zero=pads_with_zeros(adders[name]))
            for name, seen in ranges.items()
        }
        model = layerwise.replace(self.model, grids)
        given = layerwise.layer_outputs(model, ranges, self.first)
        reports = [
            layer_report(
                name,
                model.get_submodule(name),
                () if adders[name].norm is None else (type(adders[name].norm).__name__,),
                given.get(name),
                expected.get(name),
            )
            for name in ranges
        ]
        self.remarks.append(remark)
        return self._finished(model, reports, grids, None)

    def _note_uncalled(self, called: Collection[nn.Module]) -> None:
        adders = layerwise.adders_of(self.model)
        if not called:
            raise AdderizeError(
                "none of the model's adders is called in its forward, or none has a form in "
                f"integers: {'; '.join(self.remarks) or 'pass the model that calls them'}"
            )
        self.remarks += [
            f"{name} stays float32: it is not called, or not on what the model's input decides"
            for name, layer in adders.items()
            if layer not in called
        ]

    def _finished(
        self,
        model: nn.Module,
        reports: Iterable[LayerReport],
        grids: dict[str, Grid],
        absorbed: dict[str, list[str]] | None,
        apart: Collection[str] = (),
    ) -> nn.Module:
        report = QuantizationReport(self.method, self.bits, tuple(reports), tuple(self.remarks))
        return finished(model, Quantization(report, grids, absorbed, tuple(apart), self.converted))
