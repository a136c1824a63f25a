"""One page on a network: what it computes, what it costs, what goes on in it, what to mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from adderize.arguments import check_module
from adderize.counting import count
from adderize.dataflow import blank_input
from adderize.errors import AdderizeError
from adderize.inspection import Inspection, inspect
from adderize.inspection.histograms import filter_histograms, input_histograms
from adderize.integer.integer_report import report_of_shifts
from adderize.quantize import QuantizationReport, quantize, quantize_report
from adderize.quantize.record import quantization_of
from adderize.reporting.contents import Size
from adderize.reporting.model_report import ModelReport
from adderize.reporting.notices import has_new_statistics
from adderize.surgery import Plan, adderize, plan
from adderize.surgery.engine import converted_layers
from adderize.tables import Report

__all__ = ["ModelReport", "report"]

_BATCH = 32


def report(
    model: nn.Module,
    images: Tensor | None = None,
    *,
    name: str = "",
    source: str = "",
    input_size: Sequence[int] | None = None,
    energy: str | None = None,
    latency: str | None = None,
    **options: Any,
) -> ModelReport:
    """All that :func:`adderize.plan`, :func:`adderize.count`, ``inspect`` and ``quantize`` tell.

    Args:
        model: any module; it is left as it was. One without adders is reported on as
            ``adderize(model, **options)`` makes it.
        images: (N, C, H, W), normalised as in the training, a hundred or more of all classes; None
            leaves out what needs them: inputs, outputs, saturation and the errors in 8 bits.
        name: what to call the model.
        source: what the images are, and how normalised, in words for the page.
        input_size: (C, H, W) of one example; that of the images, or the model's own, by default.
        energy, latency: tables of costs, as for :func:`adderize.count`.
        options: of :func:`adderize.adderize`.

    Returns:
        the report: ``to_html()`` gives the page, ``save(path)`` writes it. What could not be told
        is in its ``absent``, with the reason.

    Raises:
        AdderizeError: options that :func:`adderize.plan` refuses, a network that cannot be counted,
            images that do not fit it.
    """
    check_module(model)
    if images is not None and not isinstance(images, Tensor):
        raise AdderizeError(
            f"images is a {type(images).__name__}; expected one tensor (N, C, H, W)"
        )
    size = images.shape[1:] if input_size is None and images is not None else input_size
    budget = count(model, size, energy=energy, latency=latency, **options)
    example = blank_input(model, budget.input_size)
    absent: dict[str, str] = {}
    shifts, planned, network = report_of_shifts(model), None, model
    made = shifts is not None or quantization_of(model) is not None
    if made:
        absent["plan"] = "the network was made from an adder network, which has the plan"
    else:
        planned = plan(model, example_input=example, **options)
        if _is_to_convert(model, planned, options):
            network = adderize(model, inplace=False, example_input=example, **options)
    inspection = _inspection(network, images, name, absent, made)
    layers = () if inspection is None else inspection.layers
    return ModelReport(
        name=name or type(model).__name__,
        source=source,
        size=Size.of_made(network, shifts) if made else Size.of(network),
        plan=planned,
        budget=budget,
        inspection=inspection,
        filters=filter_histograms(network, layers),
        inputs={} if images is None or not layers else input_histograms(network, images, layers),
        quantization=_quantization(network, images, inspection, absent, shifts),
        shifts=shifts,
        absent=absent,
    )


def _is_to_convert(model: nn.Module, planned: Plan, options: dict[str, Any]) -> bool:
    """As :func:`adderize.count` has it: what holds adders or binary layers stays unless options are
    given."""
    return bool(planned.converted) and (bool(options) or not converted_layers(model))


def _inspection(
    network: nn.Module,
    images: Tensor | None,
    name: str,
    absent: dict[str, str],
    made: bool,
) -> Inspection | None:
    try:
        return inspect(network, images, name=name)
    except AdderizeError as error:
        if not made:
            raise
        absent["layers"] = str(error)
        return None


def _quantization(
    network: nn.Module,
    images: Tensor | None,
    inspection: Inspection | None,
    absent: dict[str, str],
    shifts: Report | None,
) -> QuantizationReport | None:
    if quantization_of(network) is not None:
        return quantize_report(network)
    if shifts is not None:
        absent["quantization"] = "the network is one of shifts"
        return None
    if images is None:
        absent["quantization"] = "errors in 8 bits are measured on images, and none were given"
    elif has_new_statistics(inspection):
        absent["quantization"] = (
            "the running statistics are those of new norms, and no range after them means "
            "anything: train the network, or recalibrate(model, batches), first"
        )
    else:
        try:
            batches = images.split(_BATCH)
            return quantize_report(quantize(network, batches))
        except AdderizeError as error:
            absent["quantization"] = str(error)
    return None
