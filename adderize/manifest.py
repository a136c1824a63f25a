"""Saving and loading converted models: safetensors weights and the list of what was converted.

A convolution's and an adder's state dicts have the same keys and load into each other without a
word, so the weights alone do not say what they belong to.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adderize import __version__
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.surgery import convert_like, options_of

WEIGHTS, MANIFEST = "model.safetensors", "adderize.json"
_FORMAT = 1
_LIBRARIES = ("torch", "torchvision", "timm", "lightning")


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write a model's weights and what was converted in it.

    Args:
        model: a model with or without adders, not wrapped.
        folder: created where absent; gets ``model.safetensors`` (the state dict) and
            ``adderize.json`` (converted layers, their kind, gradient and own norm, the options of
            the conversion, library versions).

    Raises:
        AdderizeError: the model's parameters are on the meta device.
    """
    state = model.state_dict()
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise AdderizeError(f"{empty[0]} is on the meta device and has no values to save")
    aliases = _aliases(model)
    manifest = {
        "format": _FORMAT,
        "adderize": __version__,
        "libraries": _versions(),
        "options": options_of(model),
        "layers": _layers(model),
        "shared": aliases,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if name not in aliases
    }
    save_file(_unshared(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load_model(model: nn.Module, folder: str | Path) -> nn.Module:
    """Convert a fresh model as the saved one was, then load the saved weights.

    Args:
        model: built as the saved one was before its conversion, or converted in the same way; on
            any device, the meta device too (its parameters become the loaded tensors).
        folder: what :func:`save_model` wrote.

    Returns:
        the model itself.

    Raises:
        AdderizeError: files missing or damaged, or a model that the weights do not belong to: the
            message names the layers.
    """
    folder = Path(folder)
    manifest, state = _read(folder)
    saved = manifest["layers"]
    present = _layers(model)
    if present != saved:
        strangers = [name for name in present if name not in saved]
        if strangers:
            raise AdderizeError(
                f"{folder} holds convolutions where the model has adders: {_listed(strangers)}; "
                "load into a model that is not converted, or restore() this one first"
            )
        convert_like(model, {name: kind for name, kind in saved.items() if name not in present})
        different = [name for name, entry in _layers(model).items() if entry != saved[name]]
        if different:
            raise AdderizeError(
                f"the adders {_listed(different)} differ from the saved ones in kind, gradient or "
                "norm; load into a model that is not converted"
            )
    for alias, name in manifest["shared"].items():
        state[alias] = state[name]
    _load(model, state, str(folder))
    return model


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
    adders = set(_layers(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    plain = sorted(name for name in filters & set(modules) if name not in adders)
    if plain:
        raise AdderizeError(
            f"{path} has adder filters where the model has {_listed(plain)} as other layers: "
            "convert the model first (adderize)"
        )
    kept = sorted(name for name in adders if name + ".weight" in state)
    if kept:
        raise AdderizeError(
            f"{path} has convolutions where the model has adders: {_listed(kept)}; leave them out "
            "of the conversion (exclude=)"
        )
    _load(model, state, str(path))
    return model


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "kind": type(module).__name__,
            "gradient": module.gradient,
            "norm": module.norm is not None,
        }
        for name, module in model.named_modules()
        if isinstance(module, (AdderConv2d, AdderLinear))
    }


def _aliases(model: nn.Module) -> dict[str, str]:
    """State-dict names of shared tensors -> the first name of each."""
    first: dict[Tensor, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if first.setdefault(tensor, name) != name:
            aliases[name] = first[tensor]
    return {name: aliases[name] for name in model.state_dict() if name in aliases}


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Views of one storage become tensors of their own, which safetensors asks for."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen:
            tensors[name] = tensor.clone()
        seen.add(pointer)
    return tensors


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            raise AdderizeError(f"{folder} has no {name}; expected a folder that save_model wrote")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        state = load_file(folder / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise AdderizeError(f"{folder} is damaged: {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != _FORMAT:
        raise AdderizeError(
            f"{folder / MANIFEST} has format {found!r}; this version of adderize reads {_FORMAT}"
        )
    return manifest, state


def _read_authors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdderizeError(f"{path} is no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdderizeError(f"{path} is no PyTorch checkpoint: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise AdderizeError(f"{path} holds no state dict; expected names and tensors")
    if content and all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    return content


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    try:
        model.load_state_dict(state, strict=True, assign=meta)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise AdderizeError(
            f"the weights of {source} do not belong to this model: {details}"
        ) from error


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
