"""Turning a model's convolutions into adders and back."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adderize.dataflow import Flow, trace
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.norms import (
    find_norm_by_order,
    find_norms,
    insert_norm,
    reset_zero_gamma,
)
from adderize.surgery.checks import check_layer, check_model, is_quantized
from adderize.surgery.engine import adder_kind, become, become_original, names_of_layers
from adderize.surgery.policy import (
    Options,
    Patterns,
    check_patterns,
    is_candidate,
    keep_reason,
)
from adderize.surgery.report import Plan, Row
from adderize.surgery.roles import find_roles

__all__ = ["Plan", "Row", "adderize", "plan", "restore"]


def plan(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stem: bool = False,
    head: bool = False,
    linear: bool = False,
    depthwise: bool = True,
    gates: bool = False,
    init: str = "rescale",
    norm: str = "insert",
    gradient: str = "full",
    example_input: Any = None,
) -> Plan:
    """What :func:`adderize` would do, layer by layer; the model is left as it is.

    Args:
        model: any module; its layers may be on any device, the meta device too.
        All others: as for :func:`adderize`.

    Returns:
        the plan: ``print(plan(model))`` shows it as a table; ``to_dict``, ``to_json``, ``to_csv``
        and ``to_markdown`` give it in other forms.

    Raises:
        AdderizeError: as :func:`adderize`, but not for a model without anything to convert, and
            with ``norm="require"`` the missing norms are shown instead.
    """
    options = Options.checked(
        include=include, exclude=exclude, stem=stem, head=head, linear=linear, depthwise=depthwise,
        gates=gates, init=init, norm=norm, gradient=gradient,
    )  # fmt: skip
    steps = _steps(model, options, example_input)
    return Plan(tuple(step.row for step in steps), dataclasses.asdict(options))


def adderize(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stem: bool = False,
    head: bool = False,
    linear: bool = False,
    depthwise: bool = True,
    gates: bool = False,
    init: str = "rescale",
    norm: str = "insert",
    inplace: bool = True,
    gradient: str = "full",
    example_input: Any = None,
) -> nn.Module:
    """Turn a model's convolutions into adder layers (Chen et al., AdderNet, CVPR 2020).

    The layers stay the same objects with the same parameters, so optimizers, hooks, shared layers
    and state-dict keys stay valid; an inserted norm is the layer's child ``norm``.

    Args:
        model: any module; one that is called on images as ``model(images)`` is understood best.
        include: shell-style patterns of qualified layer names (``"layer1.*"``); only these.
        exclude: patterns of layers to keep.
        stem: convert the layers that read the model's input too.
        head: convert the layers that produce the model's output too.
        linear: convert ``nn.Linear`` too.
        depthwise: convert depthwise convolutions.
        gates: convert the layers that gate feature maps by pooled vectors (squeeze-excite) too.
        init: ``"rescale"``: the present filters, scaled layer by layer to unit standard deviation;
            ``"normal"``: N(0, 1) and zero biases, as the paper does; ``"keep"``: as they are.
        norm: where no trainable norm follows, ``"insert"`` a batch norm, ``"require"`` one (raise),
            or ``"ignore"`` it (an adder without one hardly learns).
        inplace: False converts a deep copy.
        gradient: ``"full"`` or ``"sign"``, as in :func:`adderize.functional.adder_conv2d`.
        example_input: a tensor, or a tuple of arguments, to run the model on where torch.fx cannot
            trace it; only its shapes and dtypes matter. Guessed by default.

    Returns:
        the model, or the converted copy.

    Raises:
        AdderizeError: a pattern without a match, nothing to convert, a layer without a norm where
            one is required; wrapped, compiled, scripted, parametrised, lazy, quantised or
            half-precision layers.
    """
    options = Options.checked(
        include=include, exclude=exclude, stem=stem, head=head, linear=linear, depthwise=depthwise,
        gates=gates, init=init, norm=norm, gradient=gradient,
    )  # fmt: skip
    if not inplace:
        check_model(model)
        model = copy.deepcopy(model)
    steps = _steps(model, options, example_input)
    chosen = [step for step in steps if step.row.decision == "convert"]
    if not chosen:
        _explain_nothing([step.row for step in steps])
        return model
    lacking = [step.row.name for step in chosen if step.row.norm == "none"]
    if options.norm == "require" and lacking:
        raise AdderizeError(
            f"no trainable norm follows {_listed(lacking)}: add one, pass norm='insert', or leave "
            "the layers out with exclude="
        )
    for step in chosen:
        _convert(step, options)
    model._adderize_options = dataclasses.asdict(options)  # type: ignore[assignment]
    return model


@dataclasses.dataclass(frozen=True)
class _Step:
    layer: nn.Module
    row: Row
    norms: Sequence[nn.Module] = ()


def _steps(model: nn.Module, options: Options, example_input: Any) -> list[_Step]:
    check_model(model)
    named = [
        (module, names)
        for module, names in names_of_layers(model)
        if is_candidate(module) or is_quantized(module)
    ]
    check_patterns(options, named)
    layers = [module for module, _ in named]
    flows = trace(model, example_input) if layers else []
    roles = find_roles(model, flows, layers)
    module_names = {module: name for name, module in model.named_modules()}
    steps = []
    for layer, names in named:
        flow = next((flow for flow in flows if flow.calls(layer)), None)
        reason = keep_reason(layer, names, options, roles, flow)
        row = Row(names[0], type(layer).__name__, _shape(layer), "keep", reason or "", "", "")
        row = dataclasses.replace(row, method=flow.method if flow else "order")
        if isinstance(layer, (AdderConv2d, AdderLinear)):
            steps.append(_Step(layer, dataclasses.replace(row, decision="adder")))
        elif reason is not None:
            steps.append(_Step(layer, row))
        else:
            check_layer(names[0], layer)
            steps.append(_chosen(model, layer, row, names, flow, options, module_names))
    return steps


def _chosen(
    model: nn.Module,
    layer: nn.Module,
    row: Row,
    names: Sequence[str],
    flow: Flow | None,
    options: Options,
    module_names: dict[nn.Module, str],
) -> _Step:
    norms = find_norms(flow, layer) if flow else find_norm_by_order(model, layer)
    if norms:
        found = module_names[norms[0]]
        norm = found if len(norms) == 1 else f"{found} and {len(norms) - 1} more"
    else:
        norm = "inserted" if options.norm == "insert" else "none"
    reason = "convolution" if hasattr(layer, "kernel_size") else "linear layer"
    if len(names) > 1:
        reason += f", shared as {', '.join(names[1:])}"
    return _Step(
        layer, dataclasses.replace(row, decision="convert", reason=reason, norm=norm), norms
    )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = layer._parameters.get("weight")
    return tuple(weight.shape) if weight is not None else ()


def _explain_nothing(rows: Sequence[Row]) -> None:
    if any(row.decision == "adder" for row in rows):
        warnings.warn(
            "adderize: nothing new to convert; the model keeps the adders it has", stacklevel=3
        )
        return
    reasons: dict[str, int] = {}
    for row in rows:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    kept = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    raise AdderizeError(
        "nothing to convert: "
        + (f"all layers are kept ({kept}); see adderize.plan(model)" if kept else "no layers")
    )


def _convert(step: _Step, options: Options) -> None:
    layer = step.layer
    kind = adder_kind(layer)
    assert kind is not None
    become(layer, kind, gradient=options.gradient)
    assert isinstance(layer, (AdderConv2d, AdderLinear))
    _initialise(layer, options.init)
    if step.row.norm == "inserted":
        insert_norm(layer)
    for norm in step.norms:
        reset_zero_gamma(norm)


@torch.no_grad()
def _initialise(layer: AdderConv2d | AdderLinear, init: str) -> None:
    weight: Tensor = layer.weight
    if init == "normal":
        layer.reset_parameters()
    elif init == "rescale" and weight.numel() and not weight.is_meta:
        deviation = weight.std(correction=0)
        if bool(deviation > 0) and bool(deviation.isfinite()):
            weight.div_(deviation)
        else:
            nn.init.normal_(weight)


def options_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The options of each :func:`adderize` call, by the name of the module that it converted."""
    return {
        name: module._adderize_options
        for name, module in model.named_modules()
        if hasattr(module, "_adderize_options")
    }


def convert_like(model: nn.Module, layers: dict[str, dict[str, Any]]) -> nn.Module:
    """Convert exactly the named layers, with the kind, gradient and norm that each entry gives.

    Raises:
        AdderizeError: a name without a layer, or with one that has no such adder form.
    """
    check_model(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, entry in layers.items():
        kind = adder_kind(modules[name]) if name in modules else None
        if kind is None or kind.__name__ != entry["kind"]:
            found = type(modules[name]).__name__ if name in modules else "no such layer"
            raise AdderizeError(f"{name} should become {entry['kind']}, but the model has {found}")
        check_layer(name, modules[name])
    for name, entry in layers.items():
        layer = modules[name]
        become(layer, adder_kind(layer), gradient=entry["gradient"])  # type: ignore[arg-type]
        assert isinstance(layer, (AdderConv2d, AdderLinear))
        if entry["norm"]:
            insert_norm(layer)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Turn adders back into convolutions and linear layers, in place.

    Filters and biases stay as they are now; the norms that adder layers own are dropped.

    Returns:
        the model itself.

    Raises:
        AdderizeError: the model holds no adders, or is wrapped or compiled.
    """
    check_model(model)
    adders = [m for m in model.modules() if isinstance(m, (AdderConv2d, AdderLinear))]
    if not adders:
        raise AdderizeError("restore found no adder layers in the model")
    for layer in adders:
        become_original(layer)
    for module in model.modules():
        module.__dict__.pop("_adderize_options", None)
    return model


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
