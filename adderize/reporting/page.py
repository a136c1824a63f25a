"""A report as one HTML page that needs nothing else."""

from __future__ import annotations

import importlib.resources
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch

from adderize import __version__
from adderize.counting.quantities import joule, quantity
from adderize.errors import AdderizeError
from adderize.inspection import Inspection
from adderize.inspection.findings import SATURATED
from adderize.layers import AdderConv2d, AdderConv2dSame, AdderLinear, BinaryConv2d
from adderize.progress import steps
from adderize.reporting import charts, page_tables
from adderize.reporting.contents import Contents, Size
from adderize.reporting.notices import LARGE_ERROR
from adderize.reporting.svg import drawing
from adderize.tables import layer_text, shape_text

_TEMPLATE = "page.html"
_WORST = "of the output's deviation, in the worst layer"
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class Fact(NamedTuple):
    """One figure of the summary, and what there is to add."""

    title: str
    text: str
    more: str = ""


def page(report: Contents) -> str:
    """
    Raises:
        AdderizeError: jinja2 or matplotlib is not installed.
    """
    template = _template()
    with drawing():
        content = _content(report)
    text = template.render(report=report, facts=facts(report), written=_written(), **content)
    return f"{text.strip()}\n"


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise AdderizeError(
            "the report's page needs jinja2: install it with pip install 'adderize[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE)


def _packaged(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _content(report: Contents) -> dict[str, Any]:
    """Tables and figures by the names that the template has for them."""
    parameters, inspection = report.size.of_layers, report.inspection
    return {
        "totals": page_tables.totals(report.budget),
        "operations": page_tables.operations(report.budget, parameters),
        "input_shape": shape_text(report.budget.input_size),
        "operations_chart": charts.operations(report.budget),
        "energy_chart": charts.energy(report.budget),
        "notes": report.budget.notes(),
        "planned": report.plan and page_tables.planned(report.plan),
        "layers": inspection
        and page_tables.layers(inspection, parameters, settled=report.is_settled),
        "norms": inspection and page_tables.norms(inspection),
        "saturation_chart": _saturation(report),
        "histograms": _histograms(report),
        "quantized": report.quantization and page_tables.quantized(report.quantization),
        "errors_chart": _error_chart(report),
        "style": _packaged("page.css"),
        "script": _packaged("page.js"),
    }


def _saturation(report: Contents) -> str | None:
    rows = report.inspection.layers if report.inspection and report.is_settled else ()
    outside = {row.name: row.outside for row in rows if row.outside is not None}
    title = "Share of the filter values outside the range of the inputs"
    return charts.shares(outside, SATURATED, title, whole=True) if outside else None


def _errors(report: Contents) -> dict[str, float]:
    rows = () if report.quantization is None else report.quantization.layers
    return {row.layer: row.error for row in rows if row.error is not None}


def _error_chart(report: Contents) -> str | None:
    errors = _errors(report)
    return charts.shares(errors, LARGE_ERROR, "Error in 8 bits") if errors else None


def _histograms(report: Contents) -> Sequence[tuple[str, str, str]]:
    """Name, figure and a line of text for each layer."""
    found = []
    rows = () if report.inspection is None else report.inspection.layers
    for row in steps(rows, "figures"):
        filters = report.filters.get(row.name)
        if filters is not None:
            inputs = report.inputs.get(row.name)
            chart = charts.histogram(row.name, filters, inputs, row.inputs if inputs else None)
            told = row.outside is not None and report.is_settled
            text = f"{row.outside:.1%} outside" if told else row.kind
            found.append((layer_text(row.name), chart, text))
    return found


def facts(report: Contents) -> list[Fact]:
    """The figures at the top."""
    budget, inspection = report.budget, report.inspection
    before, after = budget.before, budget.after
    found = [
        _change("multiplications", before.multiplications, after.multiplications),
        _change("additions", before.additions, after.additions),
    ]
    if after.shifts:
        found.append(Fact("shifts", quantity(after.shifts)))
    costs = [budget.costs(budget.total, view) for view in ("before", "after")]
    energies = [joule(cost["energy_joule"]) for cost in costs]
    latencies = [quantity(cost["latency_cycles"]) for cost in costs]
    found += [
        Fact("energy", " → ".join(energies), budget.energy_name()),
        Fact("latency", " → ".join(latencies), f"cycles, {budget.latency.name}"),
        _size(report.size),
    ]
    if inspection is not None:
        found.append(_layers(inspection))
    if inspection is not None and inspection.outside is not None and report.is_settled:
        found.append(
            Fact(
                "filters outside inputs",
                f"{inspection.outside:.0%}",
                inspection.gradient_advice or "",
            )
        )
    errors = _errors(report).values()
    if report.quantization is not None and errors:
        title = f"error in {report.quantization.bits} bits"
        found.append(Fact(title, f"{max(errors):.2%}", _WORST))
    return found


def _layers(inspection: Inspection) -> Fact:
    """What the network holds, which is not what a plan would convert of one that holds adders."""
    kinds = Counter(row.kind for row in inspection.layers)
    adders = sum(kinds[kind.__name__] for kind in (AdderConv2d, AdderConv2dSame, AdderLinear))
    binary = kinds[BinaryConv2d.__name__]
    others = f"{kinds.total() - adders - binary} kept"
    return Fact("layers", f"{adders} adders, {binary} binary, {others}" if binary else
                f"{adders} adders, {others}")  # fmt: skip


def _change(what: str, before: float, after: float) -> Fact:
    ratio = f"{after / before:.3g} times" if before else ""
    return Fact(what, f"{quantity(before)} → {quantity(after)}", ratio)


def _size(size: Size) -> Fact:
    if size.parameters is None:
        return Fact("memory", _bytes(size.bytes), "filters, scales and biases")
    return Fact("parameters", quantity(size.parameters), f"{_bytes(size.bytes)} with buffers")


def _bytes(number: int) -> str:
    for size, unit in _UNITS:
        if number >= 0.99995 * size:
            return f"{number / size:.4g} {unit}"
    return f"{number} bytes"


def _written() -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"adderize {__version__}, torch {torch.__version__}, {now}"
