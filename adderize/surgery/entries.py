"""What was converted in a network, as plain values that a file can hold, and the same once more.

An entry is ``{"kind": class name, "gradient": mode or None, "norm": options or None}``.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.errors import AdderizeError
from adderize.layers import Converted
from adderize.ops.gradients import GRADIENTS
from adderize.surgery.checks import check_filters, check_layer, check_model, check_not_replaced
from adderize.surgery.engine import ADDER, BINARY, become, converted_layers
from adderize.surgery.fusion_guard import guard_fusion
from adderize.surgery.norms import insert_norm

_NORM_OPTIONS: dict[str, tuple[type, ...]] = {
    "eps": (int, float),
    "momentum": (int, float, type(None)),
    "affine": (bool,),
    "track_running_stats": (bool,),
}
_WITHOUT_GRADIENT_MODE = [kind.__name__ for kind in BINARY.classes]


def converted_entries(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The converted layers of a network by name.

    Raises:
        AdderizeError: a layer's own norm is not a plain batch norm.
    """
    return {
        name: {
            "kind": type(module).__name__,
            "gradient": getattr(module, "gradient", None),
            "norm": None if module.norm is None else _norm_options(f"{name}.norm", module.norm),
        }
        for name, module in converted_layers(model).items()
    }


def entries_or_none(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """As :func:`converted_entries`; None where a layer's own norm is not a plain batch norm."""
    try:
        return converted_entries(model)
    except AdderizeError:
        return None


def filter_deviations(model: nn.Module) -> dict[str, float | None]:
    """The standard deviation of the filters of every converted layer, to four digits.

    None where it is not finite.
    """
    found = {
        name: float(module.weight.detach().double().std(correction=0))
        for name, module in converted_layers(model).items()
    }
    return {name: float(f"{x:.4g}") if math.isfinite(x) else None for name, x in found.items()}


def _norm_options(name: str, norm: nn.Module) -> dict[str, Any]:
    # SyncBatchNorm and what Lightning makes of one afterwards compute as a plain one does.
    plain = isinstance(norm, _BatchNorm) and type(norm).forward is _BatchNorm.forward
    if not plain and type(norm) is not nn.SyncBatchNorm:
        raise AdderizeError(
            f"{name} is a {type(norm).__name__}; expected a plain BatchNorm2d or BatchNorm1d: put "
            "other norms after the layer in the model itself"
        )
    return {key: getattr(norm, key) for key in _NORM_OPTIONS}


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
            raise AdderizeError(
                f"{name} should become {entry['kind']}, but the model has {found}: build the "
                "network that the layers were saved from"
            )
        check_layer(name, modules[name])
        check_not_replaced(name, modules[name])
        check_filters(name, modules[name])
        kinds[name] = kind
    for name, entry in layers.items():
        layer = modules[name]
        attributes = {} if entry["gradient"] is None else {"gradient": entry["gradient"]}
        become(layer, kinds[name], **attributes)
        assert isinstance(layer, Converted)
        if entry["norm"] is not None:
            insert_norm(layer, **entry["norm"])
    guard_fusion(model)
    return model


def _kind_named(name: str, layer: nn.Module | None) -> type[nn.Module] | None:
    """The class of that name that a layer can become."""
    kinds = (target.kind_of(layer) for target in (ADDER, BINARY) if layer is not None)
    return next((kind for kind in kinds if kind is not None and kind.__name__ == name), None)


def entry_problem(name: str, entry: Any) -> str | None:
    """What is wrong with a layer's entry that was read from a file; None where it is sound."""
    if not isinstance(entry, dict) or entry.keys() != {"kind", "gradient", "norm"}:
        return f"the layer {name} is {entry!r}; expected its kind, gradient and norm"
    gradients = (None,) if entry["kind"] in _WITHOUT_GRADIENT_MODE else GRADIENTS
    if entry["gradient"] not in gradients or not _are_norm_options(entry["norm"]):
        return f"the layer {name} has the gradient {entry['gradient']!r}, norm {entry['norm']}"
    return None


def _are_norm_options(norm: Any) -> bool:
    return norm is None or (
        isinstance(norm, dict)
        and norm.keys() == _NORM_OPTIONS.keys()
        and all(type(norm[key]) in kinds for key, kinds in _NORM_OPTIONS.items())
    )
