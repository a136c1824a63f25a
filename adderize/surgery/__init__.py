"""Turning a model's convolutions into adders or binary convolutions, and back."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.surgery.binary import binarize
from adderize.surgery.checks import check_dtype, check_layer, check_model
from adderize.surgery.engine import (
    ADDER,
    BINARY,
    Converted,
    adder_kind,
    become,
    become_original,
    original_kind,
)
from adderize.surgery.norms import insert_norm, reset_zero_gamma
from adderize.surgery.policy import Options, Patterns, check_switch
from adderize.surgery.report import Plan, Row
from adderize.surgery.steps import Step, chosen_steps, find_steps, warn_optimizers, warn_untraced

__all__ = ["Plan", "Row", "adderize", "binarize", "plan", "restore"]


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
    steps = find_steps(model, options, example_input)
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
            trace it; only its shapes and dtypes matter. Guessed by default; where no guess works
            either, the order of registration decides, and a warning says so.

    Returns:
        the model, or the converted copy.

    Raises:
        AdderizeError: a pattern without a match, nothing to convert, a layer without a norm where
            one is required, filters shared with a module that stays, an ``example_input`` on which
            the model fails; wrapped, compiled, scripted, parametrised, lazy, quantised or
            half-precision layers.
    """
    options = Options.checked(
        include=include, exclude=exclude, stem=stem, head=head, linear=linear, depthwise=depthwise,
        gates=gates, init=init, norm=norm, gradient=gradient,
    )  # fmt: skip
    check_switch("inplace", inplace)
    if not inplace:
        check_model(model)
        model = copy.deepcopy(model)
    steps = find_steps(model, options, example_input)
    chosen = chosen_steps(steps, options)
    warn_untraced(steps)
    for step in chosen:
        _convert(step, options)
    if chosen:
        warn_optimizers(model, chosen)
    return model


def _convert(step: Step, options: Options) -> None:
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


def convert_like(model: nn.Module, layers: dict[str, dict[str, Any]]) -> nn.Module:
    """Convert exactly the named layers, with the kind, gradient and norm that each entry gives.

    The gradient is None for binary layers; the norm is None or the options of the batch norm to
    insert.

    Raises:
        AdderizeError: a name without a layer, or with one that has no such form.
    """
    check_model(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds: dict[str, type[nn.Module]] = {}
    for name, entry in layers.items():
        kind = _kind_named(entry["kind"], modules.get(name))
        if kind is None:
            found = type(modules[name]).__name__ if name in modules else "no such layer"
            raise AdderizeError(f"{name} should become {entry['kind']}, but the model has {found}")
        check_layer(name, modules[name])
        check_dtype(name, modules[name])
        kinds[name] = kind
    for name, entry in layers.items():
        layer = modules[name]
        attributes = {} if entry["gradient"] is None else {"gradient": entry["gradient"]}
        become(layer, kinds[name], **attributes)
        assert isinstance(layer, Converted)
        if entry["norm"] is not None:
            insert_norm(layer, **entry["norm"])
    return model


def _kind_named(name: str, layer: nn.Module | None) -> type[nn.Module] | None:
    """The class of that name that a layer can become."""
    kinds = (target.kind_of(layer) for target in (ADDER, BINARY) if layer is not None)
    return next((kind for kind in kinds if kind is not None and kind.__name__ == name), None)


def restore(model: nn.Module) -> nn.Module:
    """Turn adders and binary layers back into convolutions and linear layers, in place.

    Filters and biases stay as they are now; the norms that the layers own are dropped.

    Returns:
        the model itself.

    Raises:
        AdderizeError: the model holds no converted layers, or one of a class of its own (a
            subclass), or is wrapped or compiled.
    """
    check_model(model)
    converted = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, Converted)
    }
    if not converted:
        raise AdderizeError("restore found no adder layers in the model, and no binary ones")
    kinds: list[type[nn.Module]] = []
    for name, layer in converted.items():
        kind = original_kind(layer)
        if kind is None:
            raise AdderizeError(
                f"{name or 'the model'} is a {type(layer).__name__}, which came from no layer of "
                "torch: replace it by hand, or restore the parts of the model without it"
            )
        kinds.append(kind)
    for layer, kind in zip(converted.values(), kinds, strict=True):
        become_original(layer, kind)
    return model
