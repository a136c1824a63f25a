"""From a model and the options to the steps of a conversion; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from adderize.dataflow import Flow, flow_of, trace
from adderize.surgery.checks import check_model
from adderize.surgery.decisions import Decision, NormFix, Reason, Row
from adderize.surgery.engine import Target
from adderize.surgery.norms import (
    find_norms_after,
    find_norms_before,
    keeps_channels_apart,
    trains_with,
)
from adderize.surgery.options import Options
from adderize.surgery.policy import is_candidate, keep_reason
from adderize.surgery.roles import find_roles
from adderize.surgery.ties import check_ties


@dataclass(frozen=True)
class Step:
    """A layer, its row of the plan and the norms that were found for it."""

    layer: nn.Module
    row: Row
    norms: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class Steps:
    """What a conversion would do.

    Attributes:
        every: one step a layer, in registration order.
        flows: of the model.
    """

    every: Sequence[Step]
    flows: Sequence[Flow]

    @property
    def chosen(self) -> list[Step]:
        """Those that convert a layer."""
        return [step for step in self.every if step.row.decision is Decision.CONVERT]

    @property
    def names(self) -> dict[nn.Module, str]:
        """Of the layers to convert."""
        return {step.layer: step.row.name for step in self.chosen}


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
    layers = {layer: names for layer, names in _names(model).items() if is_candidate(layer)}
    options.check_patterns([name for names in layers.values() for name in names])
    flows = trace(model, example_input) if layers else []
    roles = find_roles(model, flows, list(layers))
    module_names = {module: name for name, module in model.named_modules()}
    every = []
    for layer, names in layers.items():
        flow = flow_of(flows, layer)
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
        every.append(Step(layer, row, norms))
    steps = Steps(every, flows)
    check_ties(model, flows, steps.names)
    return steps


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Each module once, in registration order, with all the names it is registered under."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


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
    found = find_norms_after(flow, layer, model)
    return found if all(map(keeps_channels_apart, found)) else []
