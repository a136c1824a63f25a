"""Checkpoints of the AdderNet authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adderize.arguments import check_module, own_path
from adderize.checkpoints.files import read_file
from adderize.checkpoints.state_dicts import StateDict, load_weights, own_part
from adderize.errors import AdderizeError, listed
from adderize.layers import Adder
from adderize.layers.adder import rename_authors_keys
from adderize.surgery.engine import adder_kind
from adderize.surgery.entries import convert_like

_FILTERS = ".adder"


def load_authors_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint of the AdderNet authors' code (PyTorch file, state dict).

    A prefix of every key, such as ``module.``, is dropped; ``adder`` and ``b`` become the layers'
    ``weight`` and ``bias``.

    Args:
        model: a network with :class:`AdderConv2d` layers where the checkpoint has adders.
        path: the ``.pth`` file: a state dict, or a dict with one under ``state_dict``.

    Returns:
        the model itself.

    Raises:
        AdderizeError: no such file, no state dict, adders where the model has convolutions or the
            reverse, keys or shapes that do not fit.
    """
    check_module(model)
    path = own_path(path)
    state = authors_part(read_file(path).state, model, path)
    filters = {key.removesuffix(_FILTERS) for key in state if key.endswith(_FILTERS)}
    modules = dict(model.named_modules(remove_duplicate=False))
    adders = {name for name, m in modules.items() if isinstance(m, Adder)}
    plain = sorted(name for name in filters & set(modules) if name not in adders)
    if plain:
        raise AdderizeError(
            f"{path} has adder filters where the model has {listed(plain)} as other layers: "
            "convert the model first (adderize)"
        )
    kept = sorted(name for name in adders if name + ".weight" in state)
    if kept:
        raise AdderizeError(
            f"{path} has convolutions where the model has adders: {listed(kept)}; leave them out "
            "of the conversion (exclude=)"
        )
    load_authors_weights(model, state, path)
    return model


def holds_authors_filters(state: Mapping[str, Any]) -> bool:
    return any(key.endswith(_FILTERS) for key in state)


def authors_part(state: Mapping[str, Any], model: nn.Module, source: Path) -> StateDict:
    """The model's entries, with the authors' names of filters."""
    names = [*model.state_dict()]
    filters = [name.removesuffix(".weight") + _FILTERS for name in names]
    return own_part(state, [*names, *filters], source)[0]


def convert_as_the_authors(model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """Make adders, without norms of their own, where filters have the authors' name."""
    modules = dict(model.named_modules())
    entries = {}
    for name in (key.removesuffix(_FILTERS) for key in state if key.endswith(_FILTERS)):
        kind = adder_kind(modules.get(name, nn.Identity()))
        if kind is not None:
            entries[name] = {"kind": kind.__name__, "gradient": "full", "norm": None}
    return convert_like(model, entries)


def load_authors_weights(model: nn.Module, state: StateDict, source: Path) -> None:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Adder):
            rename_authors_keys(state, name + ".")
    load_weights(model, state, source)
