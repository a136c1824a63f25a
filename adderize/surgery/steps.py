"""From a model and the options to the steps of a conversion; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from adderize.dataflow import Flow, trace
from adderize.errors import listed
from adderize.surgery.checks import check_model
from adderize.surgery.decisions import Decision, NormFix, Reason, Row
from adderize.surgery.engine import Target, named_layers
from adderize.surgery.fusion_guard import fusible_blocks
from adderize.surgery.norms import (
    find_norm_by_order,
    find_norms,
    find_norms_before,
    keeps_channels_apart,
    trains_with,
)
from adderize.surgery.options import Options
from adderize.surgery.policy import is_candidate, keep_reason
from adderize.surgery.roles import find_roles
from adderize.surgery.ties import check_ties
from adderize.surgery.zero_scales import ZeroScale, find_zero_scales


@dataclass(frozen=True)
class Step:
    """A layer, its row of the plan and the norms that were found for it."""

    layer: nn.Module
    row: Row
    norms: Sequence[nn.Module] = ()


class Steps(list[Step]):
    """One step a layer, in registration order.

    Attributes:
        zero_scales: what keeps the gradient from the layers to convert in the first step.
        remarks: what else there is to know about the model, as sentences.
        flows: of the model.
    """

    zero_scales: Sequence[ZeroScale] = ()
    remarks: Sequence[str] = ()
    flows: Sequence[Flow] = ()


def find_steps(
    model: nn.Module, options: Options, target: Target, example_input: Any = None
) -> Steps:
    """What a conversion would do; the model is left as it is.

    Args:
        target: what the layers would become.

    Raises:
        AdderizeError: wrapped models, patterns without a match, layers that cannot be converted.
    """
    check_model(model)
    layers = {layer: names for layer, names in named_layers(model) if is_candidate(layer)}
    options.check_patterns([name for names in layers.values() for name in names])
    flows = trace(model, example_input) if layers else []
    roles = find_roles(model, flows, list(layers))
    module_names = {module: name for name, module in model.named_modules()}
    steps = Steps()
    steps.flows = flows
    for layer, names in layers.items():
        flow = next((flow for flow in flows if flow.calls(layer)), None)
        kept = keep_reason(layer, names, options, roles, flow, target)
        decision = _decision(kept, target)
        norms: list[nn.Module] = []
        fix = NormFix.NOT_NEEDED
        if decision is not Decision.KEEP and (flow or not flows):
            norms = _norms_of(layer, model, flow, target)
            inserts = decision is Decision.CONVERT and options.norm == "insert"
            fix = NormFix.FOUND if norms else NormFix.INSERTED if inserts else NormFix.MISSING
        row = Row(
            name=names[0],
            kind=type(layer).__name__,
            shape=_shape(layer),
            decision=decision,
            why=kept or (Reason.LINEAR if isinstance(layer, nn.Linear) else Reason.CONVOLUTION),
            aliases=tuple(names[1:]),
            norm_fix=fix,
            norms=tuple(module_names[found] for found in norms),
            method=(flow or flows[0]).method if flows else "order",
        )
        steps.append(Step(layer, row, norms))
    chosen = {step.layer: step.row.name for step in steps if step.row.decision is Decision.CONVERT}
    check_ties(model, flows, chosen)
    steps.zero_scales = find_zero_scales(model, flows, chosen)
    steps.remarks = [*map(str, (zero for zero in steps.zero_scales if not zero.is_gamma))]
    steps.remarks += _fusion_remarks(model, [*chosen.values()])
    return steps


def _fusion_remarks(model: nn.Module, chosen: Collection[str]) -> Iterator[str]:
    methods: dict[str, list[str]] = {}
    for name, block, method in fusible_blocks(model, chosen):
        methods.setdefault(f"{type(block).__name__}.{method}()", []).append(name or "the model")
    for method, names in methods.items():
        blocks = listed(names)
        yield f"{method} merges layers as if they were convolutions, and will raise: {blocks}"


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = layer._parameters.get("weight")
    return () if weight is None or is_lazy(weight) else tuple(weight.shape)


def _decision(kept: Reason | None, target: Target) -> Decision:
    if kept is None:
        return Decision.CONVERT
    return target.decision if kept is target.is_already else Decision.KEEP


def _norms_of(
    layer: nn.Module, model: nn.Module, flow: Flow | None, target: Target
) -> list[nn.Module]:
    own = layer.norm if isinstance(layer, target.classes) else None
    if isinstance(own, nn.Module) and trains_with(own, layer):
        return [own]
    if target.norm_side == "sources":
        return find_norms_before(flow, layer) if flow else []
    found = find_norms(flow, layer) if flow else find_norm_by_order(model, layer)
    return found if all(map(keeps_channels_apart, found)) else []
