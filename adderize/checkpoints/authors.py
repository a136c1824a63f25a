"""Checkpoints of the AdderNet authors' code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from adderize.checkpoints.manifest import load_weights
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.layers.adder import _rename_authors_keys
from adderize.surgery.steps import listed


def load_authors_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint of the AdderNet authors' code (PyTorch file, state dict).

    A leading ``module.`` of every key is dropped; ``adder`` and ``b`` become the layers' ``weight``
    and ``bias``.

    Args:
        model: a network with :class:`AdderConv2d` layers where the checkpoint has adders.
        path: the ``.pth`` file: a state dict, or a dict with one under ``state_dict``.

    Returns:
        the model itself.

    Raises:
        AdderizeError: no such file, no state dict, adders where the model has convolutions or the
            reverse, keys or shapes that do not fit.
    """
    state = _read_authors(Path(path))
    filters = {key.removesuffix(".adder") for key in state if key.endswith(".adder")}
    modules = dict(model.named_modules(remove_duplicate=False))
    adders = {name for name, m in modules.items() if isinstance(m, (AdderConv2d, AdderLinear))}
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
    for name in adders:
        _rename_authors_keys(state, name + ".")
    load_weights(model, state, Path(path))
    return model


def _read_authors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdderizeError(f"{path} is no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdderizeError(f"{path} is no PyTorch checkpoint: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise AdderizeError(f"{path} holds no state dict; expected names and tensors")
    if content and all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    return content
