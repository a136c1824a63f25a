"""8-bit inference: adder networks in integers.

Filters outside an adder's input range are clamped to it exactly, at the price of a constant per
channel; input and filters share scale and zero point, so that their distance is an integer; batch
norm, residual addition, activation and the next layer's bytes are one affine map behind it.

A network goes one way: :mod:`prepare` (a graph of plain calls), :mod:`fuse` (what follows an adder
becomes part of it), :mod:`observe` (ranges on calibration data, and the qparams that follow),
:mod:`convert` (layers on bytes).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adderize.arguments import check_module, check_switch
from adderize.dataflow.undisturbed import restored
from adderize.errors import AdderizeError
from adderize.layers.settings import settings_of
from adderize.progress import steps
from adderize.quantize.byte_layers import QuantAdderConv2d, QuantAdderLinear
from adderize.quantize.calls import Adder, why_float
from adderize.quantize.float_tracer import hook_owner
from adderize.quantize.fuse import Fusion
from adderize.quantize.observe import METHODS, Observer, calibration_inputs
from adderize.quantize.prepare import prepare
from adderize.quantize.quantization_report import LayerReport, QuantizationReport, layer_report
from adderize.quantize.record import Quantization, finished, quantization_of
from adderize.surgery.checks import check_model
from adderize.surgery.entries import converted_entries

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
            is what counts, forward hooks included. It is left as it is.
        calibration: batches as a DataLoader gives them: tensors, or tuples and lists whose first
            element is the input; or one tensor, a single batch. A few hundred images from the
            training set will do.
        method: how a tensor's range follows from its values. ``"minmax"``: from the smallest to the
            largest; ``"percentile"``: without 0.01 % of the values at each end; ``"mse"``: with the
            ends cut where that rounds the values with a smaller mean squared error.
        bits: of inputs and filters, 2 to 8. Tensors that are only added stay at 8.
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
    _check(model, method, bits)
    check_switch("inplace", inplace)
    model = (model if inplace else _copy(model)).eval()
    adders, entries, settings = _adders(model), _entries(model), settings_of(model)
    batches = calibration_inputs(calibration, next(model.parameters()).device)
    first = next(batches)
    network = prepare(model, first)
    with restored(model):
        few = _few(model, first)

    network.fuse()
    with restored(model):
        expected = network.outputs(few)
    with restored(model):
        observers = network.observe(steps(itertools.chain([first], batches), "calibration"))
    qparams = {
        group.name: Observer.union(observers[tensor] for tensor in group.read).qparams(
            method, bits if group.inputs else 8, with_zero=group.with_zero
        )
        for group in network.groups
    }
    remarks = (*_remarks(adders, network.fusions), *network.remarks)
    quantized = network.convert(qparams)

    with restored(quantized):
        given = network.outputs(few)
    layers = tuple(
        layer_report(name, quantized.get_submodule(name), fusion, given, expected)
        for fusion, name in network.layers().items()
    )
    report = QuantizationReport(method, bits, layers, remarks)
    return finished(
        quantized,
        Quantization(
            report, qparams, network.absorbed, network.apart, entries, network.hooked, settings
        ),
    )


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


def _check(model: nn.Module, method: str, bits: int) -> None:
    if method not in METHODS:
        raise AdderizeError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise AdderizeError(f"bits is {bits!r}; expected an integer from 2 to 8")
    check_model(model)
    if any(isinstance(layer, (QuantAdderConv2d, QuantAdderLinear)) for layer in model.modules()):
        raise AdderizeError("the model is quantized already: quantize the float model")
    if not _adders(model):
        raise AdderizeError("the model has no adder layers: convert and train it first (adderize)")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise AdderizeError(f"{name} is on the meta device and has no values")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise AdderizeError(f"{name} has {tensor.dtype}; expected float32: use model.float()")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdderizeError(f"{name} holds NaN or infinity; expected finite weights")


def _copy(model: nn.Module) -> nn.Module:
    """A copy with the model's very hooks: what they collect goes to where it went before."""
    own = set(model.modules())
    hooks = [
        hook
        for module in own
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
        if hook_owner(hook) not in own
    ]
    try:
        return copy.deepcopy(model, {id(hook): hook for hook in hooks})
    except Exception as error:
        raise AdderizeError(
            f"the model cannot be copied ({error}): remove what it keeps of earlier calls, or pass "
            "inplace=True if it is not needed afterwards"
        ) from error


def _adders(model: nn.Module) -> dict[str, Adder]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Adder)}


def _entries(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    try:
        return converted_entries(model)
    except AdderizeError:
        return None


def _few(model: nn.Module, inputs: Tensor) -> Tensor:
    """Some images of a batch; all of it where the model takes no part, as of a single image."""
    try:
        model(inputs[:_COMPARED_IMAGES].clone())
    except Exception:
        return inputs
    return inputs[:_COMPARED_IMAGES]


def _remarks(adders: dict[str, Adder], fusions: Iterable[Fusion]) -> list[str]:
    """Which adders stay float32, and why; AdderizeError where all do."""
    called = {fusion.layer for fusion in fusions}
    reasons = {name: why_float(layer) for name, layer in adders.items()}
    remarks = [f"{name} stays float32: {why}" for name, why in reasons.items() if why]
    if not called:
        raise AdderizeError(
            "none of the model's adders is called in its forward, or none has a form in "
            f"integers: {'; '.join(remarks) or 'pass the model that calls them'}"
        )
    return remarks + [
        f"{name} stays float32: it is not called, or not on what the model's input decides"
        for name, layer in adders.items()
        if reasons[name] is None and layer not in called
    ]
