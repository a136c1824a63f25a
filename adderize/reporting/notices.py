"""What a reader should act on, from all that was found out about a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adderize.counting import OpBudget
from adderize.inspection import Inspection
from adderize.quantize import QuantizationReport
from adderize.surgery import Decision, Plan
from adderize.tables import layer_text

LARGE_ERROR = 0.1
_UNTRACED = (
    "The model could not be traced, so the order of registration decided what reads the input, "
    "produces the output and has a norm: compare the plan with the network's code, and name layers "
    "with --include and --exclude"
)
_LARGE_ERROR = (
    "The network in 8 bits deviates much from the one in float32 here, earlier layers included: "
    "calibrate on more images, prepared as in training, or try --method mse or percentile"
)
_UNCOUNTED = "Operators without a formula are missing from every total"


@dataclass(frozen=True)
class Notice:
    """Something to know or to act on.

    Attributes:
        title: what it is, in two or three words.
        advice: what to do, or what follows.
        places: where: names of layers, with what was found there.
        grave: whether it keeps the network from training or predicting well.
    """

    title: str
    advice: str
    places: tuple[str, ...] = ()
    grave: bool = True


def notices_of(
    plan: Plan | None,
    budget: OpBudget,
    inspection: Inspection | None,
    quantization: QuantizationReport | None,
) -> tuple[Notice, ...]:
    found = [
        *(() if inspection is None else _of_inspection(inspection)),
        *(() if plan is None else _of_plan(plan)),
        *(() if quantization is None else _of_quantization(quantization)),
        *_of_budget(budget),
    ]
    return tuple(sorted(found, key=lambda notice: not notice.grave))


def has_new_statistics(inspection: Inspection | None) -> bool:
    """Whether there are running statistics that no batch has changed."""
    findings = () if inspection is None else inspection.findings
    return any(finding.kind == "untrained statistics" for finding in findings)


def _of_inspection(inspection: Inspection) -> Iterator[Notice]:
    for kind, same in inspection.by_kind().items():
        yield Notice(kind, same[0].advice, tuple(finding.place for finding in same))


def _of_plan(plan: Plan) -> Iterator[Notice]:
    guessed = tuple(
        row.name for row in plan.rows if row.method == "order" and row.decision is not Decision.KEEP
    )
    if guessed:
        yield Notice("not traced", _UNTRACED, guessed)
    for remark in plan.remarks:
        yield Notice("before training", remark)


def _of_quantization(report: QuantizationReport) -> Iterator[Notice]:
    large = tuple(
        f"{layer_text(row.layer)} ({row.error:.1%})"
        for row in report.layers
        if row.error is not None and row.error >= LARGE_ERROR
    )
    if large:
        yield Notice("large error in 8 bits", _LARGE_ERROR, large)
    if report.remarks:
        yield Notice("in 8 bits", "", report.remarks, grave=False)


def _of_budget(budget: OpBudget) -> Iterator[Notice]:
    if budget.uncounted:
        places = tuple(map(str, budget.uncounted))
        yield Notice("not counted", _UNCOUNTED, places, grave=False)
