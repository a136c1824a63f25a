"""The one engine of every conversion: preview its steps, or take them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from adderize.arguments import check_switch
from adderize.dataflow import trace
from adderize.errors import AdderizeError, classed, listed
from adderize.layers import Adder, Converted
from adderize.surgery.advice import (
    remarks,
    warn_frozen,
    warn_made_before,
    warn_unchanged,
    warn_untraced,
)
from adderize.surgery.calls import check_same_calls
from adderize.surgery.checks import check_model
from adderize.surgery.decisions import NormFix
from adderize.surgery.engine import Target, become
from adderize.surgery.fusion_guard import guard_fusion
from adderize.surgery.initialisation import initialise, reset_zero_gamma, start_at_one
from adderize.surgery.norms import insert_norm
from adderize.surgery.options import Options
from adderize.surgery.plan_table import Plan
from adderize.surgery.restoration import all_or_none
from adderize.surgery.steps import Step, Steps, find_steps
from adderize.surgery.zero_scales import find_zero_scales


def preview(model: nn.Module, target: Target, example_input: Any, **arguments: Any) -> Plan:
    """The plan of a conversion; the model is left as it is."""
    options = Options.checked(arguments, target)
    steps = find_steps(model, options, target, example_input)
    described = {"target": target.decision.value, **asdict(options)}
    return Plan(tuple(step.row for step in steps.every), described, tuple(remarks(model, steps)))


def convert(
    model: nn.Module, target: Target, inplace: bool, example_input: Any, **arguments: Any
) -> nn.Module:
    """The converted model, or a converted copy."""
    options = Options.checked(arguments, target)
    check_switch("inplace", inplace)
    check_model(model)
    with torch.inference_mode(False):  # what is made in it could not be trained
        return _converted(model, options, target, inplace, example_input)


def _converted(
    model: nn.Module, options: Options, target: Target, inplace: bool, example_input: Any
) -> nn.Module:
    if not inplace:
        model = _copied(model)
    steps = find_steps(model, options, target, example_input)
    chosen, zero_scales = steps.chosen, find_zero_scales(model, steps.flows, steps.names)
    _check_norms(steps.every, options, target)
    if not chosen and any(step.row.decision is target.decision for step in steps.every):
        warn_unchanged()
    elif not chosen:
        raise AdderizeError(
            f"nothing to convert: {_reasons(steps.every)}; see adderize.plan(model)"
        )
    warn_untraced(steps, target)
    warn_frozen(steps)
    if chosen:
        _become(model, steps, options, target, example_input)
    for step in chosen:
        _start(step, options)
    for zero in zero_scales:
        if zero.is_gamma:
            start_at_one(zero.parameter)
    guard_fusion(model)
    warn_made_before(model, chosen)
    return model


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model holds may refuse
        raise AdderizeError(
            f"the model cannot be copied ({classed(error)}): convert it in place, or "
            "take away what it keeps, such as the results of a forward pass"
        ) from error


def _become(
    model: nn.Module, steps: Steps, options: Options, target: Target, example_input: Any
) -> None:
    """Give the chosen layers their new classes, all or none."""
    with all_or_none(model):
        for layer in steps.names:
            kind = target.kind_of(layer)
            assert kind is not None
            become(layer, kind)
            if isinstance(layer, Adder):
                layer.gradient = options.gradient
        check_same_calls(model, steps.flows, trace(model, example_input) if steps.flows else [])


def _start(step: Step, options: Options) -> None:
    layer = step.layer
    assert isinstance(layer, Converted)
    if isinstance(layer, Adder):
        initialise(layer, options.init, options.scale)
    if step.row.norm_fix is NormFix.INSERTED:
        insert_norm(layer)
    for norm in step.norms:
        reset_zero_gamma(norm)


def _check_norms(steps: Sequence[Step], options: Options, target: Target) -> None:
    """Raise where norms are missing that the options require."""
    # What was converted before counts, unless a pattern leaves it out.
    lacking = [
        step.row.name
        for step in steps
        if step.row.norm_fix is NormFix.MISSING and options.matches([step.row.name])
    ]
    if options.norm == "require" and lacking:
        users = target.norm_side == "users"
        wanted = "batch or instance norm follows" if users else "norm comes right before"
        raise AdderizeError(
            f"no trainable {wanted} {listed(lacking)}: add one, pass norm='insert', or leave the "
            "layers out with exclude="
        )


def _reasons(steps: Sequence[Step]) -> str:
    counts = Counter(step.row.reason for step in steps)
    kept = ", ".join(f"{count} x {reason!r}" for reason, count in counts.items())
    if any(isinstance(step.layer, nn.Conv1d) for step in steps):
        kept += "; a Conv1d can be written as a Conv2d over images of height 1"
    return f"all layers are kept ({kept})" if kept else "the model has no convolution"
