"""Saving and loading converted models: safetensors weights and the list of what was converted.

A convolution's and an adder's state dicts have the same keys and load into each other without a
word, so the weights alone do not say what they belong to.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from adderize import __version__
from adderize.errors import AdderizeError
from adderize.quantize.record import Quantization, quantization_of, rebuild
from adderize.surgery import convert_like
from adderize.surgery.engine import become_original, original_kind
from adderize.surgery.entries import converted_entries, entry_problem
from adderize.surgery.steps import listed

WEIGHTS, MANIFEST = "model.safetensors", "adderize.json"
_FORMAT = 1
_LIBRARIES = ("torch", "torchvision", "timm", "lightning")


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write a model's weights and what was converted in it.

    Args:
        model: a model with or without adders or binary layers, not wrapped.
        folder: created where absent; gets ``model.safetensors`` (the state dict) and
            ``adderize.json`` (converted layers, their kind, gradient and own norm, shared tensors,
            library versions; for a quantised model the grids of its tensors).

    Raises:
        AdderizeError: a wrapped model, parameters on the meta device, a converted layer whose
            ``norm`` is no plain batch norm, or a folder that cannot be written.
    """
    _check_unwrapped(model)
    state = model.state_dict()
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise AdderizeError(f"{empty[0]} is on the meta device and has no values to save")
    aliases = _aliases(model)
    manifest = {
        "format": _FORMAT,
        "adderize": __version__,
        "libraries": _versions(),
        "layers": converted_entries(model),
        "shared": aliases,
    }
    if (record := quantization_of(model)) is not None:
        manifest |= {"layers": record.layers(), "quantized": record.to_dict()}
    folder = Path(folder)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if name not in aliases
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_unshared(tensors), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise AdderizeError(f"cannot write to {folder}: {error}") from error


def load_model(model: nn.Module, folder: str | Path) -> nn.Module:
    """Convert a fresh model as the saved one was, then load the saved weights.

    Args:
        model: built as the saved one was before its conversion, or converted in the same way; on
            any device, the meta device too (its parameters become the loaded tensors).
        folder: what :func:`save_model` wrote.

    Returns:
        the model itself; a new one, in evaluation mode, where the saved one was quantised.

    Raises:
        AdderizeError: files missing or damaged, a wrapped model, buffers on the meta device that no
            weights are saved for, or a model that the weights do not belong to: the message names
            the layers, and the model is left as it was.
    """
    _check_unwrapped(model)
    _check_buffers(model)
    folder = Path(folder)
    manifest, state = _read(folder)
    if "quantized" in manifest:
        return _load_quantized(copy.deepcopy(model), manifest, state, folder)
    saved = manifest["layers"]
    present = converted_entries(model)
    strangers = [name for name in present if name not in saved]
    if strangers:
        raise AdderizeError(
            f"{folder} holds plain layers where the model has converted ones: {listed(strangers)}; "
            "load into a model that is not converted, or restore() this one first"
        )
    new = {name: entry for name, entry in saved.items() if name not in present}
    if new:
        convert_like(model, new)
    try:
        entries = converted_entries(model)
        different = [name for name, entry in entries.items() if entry != saved[name]]
        if different:
            raise AdderizeError(
                f"the layers {listed(different)} differ from the saved ones in kind, gradient or "
                "norm; load into a model that is not converted"
            )
        _check_ties(model, manifest["shared"], folder)
        for alias, name in manifest["shared"].items():
            state[alias] = state[name].clone()
        load_weights(model, state, folder)
    except AdderizeError:
        for layer in map(model.get_submodule, new):
            kind = original_kind(layer)
            assert kind is not None
            become_original(layer, kind)
        raise
    return model


def _load_quantized(
    model: nn.Module, manifest: dict[str, Any], state: dict[str, Tensor], folder: Path
) -> nn.Module:
    record = Quantization.from_dict(manifest["quantized"], manifest["layers"])
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        model.to_empty(device="cpu")
    present = converted_entries(model)
    convert_like(model, {n: entry for n, entry in manifest["layers"].items() if n not in present})
    if converted_entries(model) != manifest["layers"]:
        raise AdderizeError(f"the model's converted layers are not those of {folder}")
    quantized = rebuild(model, record)
    _check_ties(quantized, manifest["shared"], folder)
    for alias, name in manifest["shared"].items():
        state[alias] = state[name].clone()
    load_weights(quantized, state, folder)
    return quantized


def _check_unwrapped(model: nn.Module) -> None:
    found = type(model).__name__
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise AdderizeError(f"the model is wrapped ({found}): pass what it wraps, model.module")
    if found == "OptimizedModule":
        raise AdderizeError("the model is compiled: pass what torch.compile got, model._orig_mod")


def _check_buffers(model: nn.Module) -> None:
    state = model.state_dict()
    lost = [name for name, b in model.named_buffers() if b.is_meta and name not in state]
    if lost:
        raise AdderizeError(
            f"the buffers {listed(lost)} are on the meta device and not among saved weights "
            "(persistent=False): build the model on the CPU"
        )


def _check_ties(model: nn.Module, shared: dict[str, str], folder: Path) -> None:
    for alias, name in _aliases(model).items():
        if shared.get(alias, alias) != shared.get(name, name):
            raise AdderizeError(
                f"{alias} and {name} are one tensor in the model and two in {folder}: build the "
                "model as the saved one was"
            )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
    problem = _manifest_problem(manifest, state)
    if problem:
        raise AdderizeError(f"{folder / MANIFEST} is damaged: {problem}")
    return manifest, state


def _manifest_problem(manifest: dict[str, Any], state: dict[str, Tensor]) -> str | None:
    for key in ("layers", "shared"):
        if not isinstance(manifest.get(key), dict):
            return f"{key} is {manifest.get(key)!r}; expected names and what they stand for"
    for name, entry in manifest["layers"].items():
        if (problem := entry_problem(name, entry)) is not None:
            return problem
    for alias, name in manifest["shared"].items():
        if name not in state:
            return f"{alias} is shared with {name}, which is not among the weights"
    return None


def load_weights(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load a state dict strictly; into parameters on the meta device by assignment.

    Raises:
        AdderizeError: keys or shapes that do not fit; nothing was loaded then.
    """
    _check_fit(model, state, source)
    aliases = _aliases(model)
    meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    try:
        model.load_state_dict(state, strict=True, assign=meta)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise AdderizeError(
            f"the weights of {source} do not belong to this model: {details}"
        ) from error
    # Assigning gives each name a parameter of its own.
    for alias, name in aliases.items() if meta else ():
        owner, _, key = name.rpartition(".")
        other, _, other_key = alias.rpartition(".")
        setattr(model.get_submodule(other), other_key, getattr(model.get_submodule(owner), key))


def _check_fit(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Raise before anything is loaded: load_state_dict copies what fits, then raises."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [
        f"{name} has the shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    # Files older than this counter lack it, and torch fills it in.
    counter = "num_batches_tracked"
    missing = [name for name in expected if name not in state and not name.endswith(counter)]
    unexpected = [name for name in state if name not in expected]
    if missing:
        problems.append(f"they lack {listed(missing)}")
    if unexpected:
        problems.append(f"the model lacks {listed(unexpected)}")
    if problems:
        raise AdderizeError(
            f"the weights of {source} do not belong to this model: {'; '.join(problems[:5])}"
        )
