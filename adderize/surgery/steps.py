"""From a model and the options to the steps of a conversion, shared by every kind of target."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from adderize.dataflow import Flow, trace
from adderize.errors import AdderizeError
from adderize.surgery.checks import check_model
from adderize.surgery.engine import ADDER, Target, named_layers
from adderize.surgery.norms import (
    find_norm_by_order,
    find_norms,
    find_norms_before,
    is_trainable_norm,
)
from adderize.surgery.policy import (
    Options,
    check_patterns,
    is_already,
    is_candidate,
    keep_reason,
)
from adderize.surgery.report import Row
from adderize.surgery.roles import find_roles


@dataclass(frozen=True)
class Step:
    """A layer, its row of the plan and the norms that were found for it."""

    layer: nn.Module
    row: Row
    norms: Sequence[nn.Module] = ()


def find_steps(
    model: nn.Module, options: Options, example_input: Any = None, target: Target = ADDER
) -> list[Step]:
    """One step a layer, in registration order; the model is left as it is.

    Args:
        target: what the layers would become.

    Raises:
        AdderizeError: wrapped models, patterns without a match, layers that cannot be converted.
    """
    check_model(model)
    layers = {layer: names for layer, names in named_layers(model) if is_candidate(layer)}
    check_patterns(options, [name for names in layers.values() for name in names])
    flows = trace(model, example_input) if layers else []
    roles = find_roles(model, flows, list(layers))
    module_names = {module: name for name, module in model.named_modules()}
    steps = []
    for layer, names in layers.items():
        flow = next((flow for flow in flows if flow.calls(layer)), None)
        reason = keep_reason(layer, names, options, roles, flow, target)
        decision = _decision(reason, target)
        norms: list[nn.Module] = []
        norm = ""
        if decision != "keep" and (flow or not flows):
            norms = _norms_of(layer, model, flow, target)
            inserts = decision == "convert" and options.norm == "insert"
            norm = _norm_cell([module_names[found] for found in norms], inserts)
        row = Row(
            name=names[0],
            kind=type(layer).__name__,
            shape=_shape(layer),
            decision=decision,
            reason=reason or _what(layer, names),
            norm=norm,
            method=(flow or flows[0]).method if flows else "order",
        )
        steps.append(Step(layer, row, norms))
    _check_ties(model, steps)
    return steps


def _check_ties(model: nn.Module, steps: Sequence[Step]) -> None:
    """Raise where a layer to convert shares a parameter with a module that is none."""
    converted = {step.layer: step.row.name for step in steps if step.row.decision == "convert"}
    owners = {
        parameter: name for layer, name in converted.items() for parameter in layer.parameters()
    }
    for name, module in model.named_modules():
        if module in converted:
            continue
        for parameter in module.parameters(recurse=False):
            if parameter in owners:
                raise AdderizeError(
                    f"{owners[parameter]} shares its filters with {name or 'the model'}, which "
                    "stays: convert both or neither (include=, exclude=)"
                )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = layer._parameters.get("weight")
    return () if weight is None or is_lazy(weight) else tuple(weight.shape)


def _decision(reason: str | None, target: Target) -> str:
    if reason is None:
        return "convert"
    return target.decision if reason == is_already(target) else "keep"


def _what(layer: nn.Module, names: Sequence[str]) -> str:
    text = "linear layer" if isinstance(layer, nn.Linear) else "convolution"
    return text if len(names) == 1 else f"{text}, shared as {', '.join(names[1:])}"


def _norms_of(
    layer: nn.Module, model: nn.Module, flow: Flow | None, target: Target
) -> list[nn.Module]:
    own = layer.norm if isinstance(layer, target.classes) else None
    if isinstance(own, nn.Module) and is_trainable_norm(own):
        return [own]
    if target.norm_side == "sources":
        return find_norms_before(flow, layer) if flow else []
    return find_norms(flow, layer) if flow else find_norm_by_order(model, layer)


def _norm_cell(found: Sequence[str], inserts: bool) -> str:
    if not found:
        return "inserted" if inserts else "none"
    return found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"


def chosen_steps(steps: Sequence[Step], options: Options, target: Target = ADDER) -> list[Step]:
    """The steps to take; warns where all there is to convert has been converted before.

    Raises:
        AdderizeError: nothing to convert, or norms missing that the options require.
    """
    chosen = [step for step in steps if step.row.decision == "convert"]
    # What was converted before counts, unless a pattern leaves it out.
    lacking = [
        row.name
        for row in (step.row for step in steps)
        if row.norm == "none" and options.matches([row.name])
    ]
    if options.norm == "require" and lacking:
        place = "follows" if target.norm_side == "users" else "comes right before"
        raise AdderizeError(
            f"no trainable norm {place} {listed(lacking)}: add one, pass norm='insert', or leave "
            "the layers out with exclude="
        )
    if not chosen and any(step.row.decision == target.decision for step in steps):
        warnings.warn("adderize: nothing new to convert, the model is unchanged", stacklevel=3)
    elif not chosen:
        raise AdderizeError(f"nothing to convert: {_reasons(steps)}; see adderize.plan(model)")
    return chosen


def _reasons(steps: Sequence[Step]) -> str:
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.row.reason] = counts.get(step.row.reason, 0) + 1
    kept = ", ".join(f"{count} x {reason!r}" for reason, count in counts.items())
    return f"all layers are kept ({kept})" if kept else "the model has no convolution"


def warn_untraced(steps: Sequence[Step], target: Target = ADDER) -> None:
    """Warn where nothing but the order of registration told what surrounds a converted layer."""
    rows = [step.row for step in steps]
    if not any(row.decision == "convert" and row.method == "order" for row in rows):
        return
    ends = [f"{row.name} ({row.reason})" for row in rows if row.reason.startswith(("stem", "head"))]
    norms = " and a norm taken for that of the layer right before it"
    warnings.warn(
        "adderize: the model could not be traced, so the order of registration decided: "
        f"{listed(ends) or 'no layer'} kept,{norms if target is ADDER else ''}. Compare with "
        "adderize.plan(model); pass example_input, or name the layers with include and exclude",
        stacklevel=3,
    )


def warn_optimizers(model: nn.Module, steps: Sequence[Step]) -> None:
    """Warn where an optimizer that holds some of the model's parameters lacks inserted ones."""
    added = dict(_new_parameters(steps))
    if not added:
        return
    own = set(model.parameters())
    # Optimizers are in no registry; whoever made one before the conversion would train without
    # the new norms and never know.
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), Optimizer):
            continue
        # One whose constructor failed has no groups.
        groups = getattr(candidate, "param_groups", ())
        held = {p for group in groups for p in group["params"]}
        lacking = [name for name, parameter in added.items() if parameter not in held]
        if lacking and not held.isdisjoint(own):
            warnings.warn(
                f"adderize: {type(candidate).__name__} was made before the conversion and lacks "
                f"{listed(lacking)}: make it anew, or add them with add_param_group",
                stacklevel=3,
            )


def _new_parameters(steps: Sequence[Step]) -> Iterator[tuple[str, nn.Parameter]]:
    for step in steps:
        if step.row.norm == "inserted":
            for name, parameter in step.layer.norm.named_parameters():  # type: ignore[union-attr]
                yield f"{step.row.name}.norm.{name}".lstrip("."), parameter


def listed(names: Sequence[str]) -> str:
    """Up to five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
