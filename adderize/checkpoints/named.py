"""A network by its name or with its weights, whatever kind of file those are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adderize.checkpoints.authors import load_authors_checkpoint
from adderize.checkpoints.manifest import load_model, load_weights
from adderize.errors import AdderizeError
from adderize.models import by_name
from adderize.surgery import adderize, convert_like, plan
from adderize.surgery.engine import adder_kind

_AUTHORS_FILTERS = ".adder"


class Loaded(NamedTuple):
    """A network, the architecture that it was built as, and what had to be assumed about it."""

    model: nn.Module
    arch: str
    note: str = ""


def load(target: str, arch: str | None = None, **options: Any) -> Loaded:
    """Build a network, make its adders and load its weights.

    Args:
        target: a folder that ``save_model`` wrote; a file: a checkpoint of the AdderNet authors'
            code, of Lightning (its ``hyper_parameters`` may name ``arch``, ``num_classes`` and
            ``conversion``, as the recipes' do), or a state dict (PyTorch's or safetensors); or an
            architecture, as ``adderize plan`` takes it, for freshly initialised weights.
        arch: what the weights belong to, unless the checkpoint says so.
        options: those of :func:`adderize.adderize`, where nothing else says which layers are
            adders: for architectures and plain state dicts.

    Raises:
        AdderizeError: nothing there, damaged files, an unknown architecture, or weights that do not
            belong to it.
    """
    path = Path(target)
    if path.is_dir():
        arch = _named(arch, path)
        return Loaded(load_model(by_name.build(arch), path), arch)
    if path.is_file():
        return _from_file(path, arch, options)
    if arch is not None:
        raise AdderizeError(f"{target} does not exist; expected a checkpoint of {arch}")
    if path.suffix in (".pth", ".pt", ".th", ".ckpt", ".safetensors", ".bin"):
        raise AdderizeError(f"{target} does not exist")
    return Loaded(_converted(by_name.build(target), options), target)


def _from_file(path: Path, arch: str | None, options: dict[str, Any]) -> Loaded:
    content = _read(path)
    state = content.get("state_dict", content)
    tensors = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
    if not tensors or not state:
        raise AdderizeError(f"{path} holds no state dict; expected names and tensors")
    said = content.get("hyper_parameters")
    said = said if isinstance(said, dict) and arch in (None, said.get("arch")) else {}
    arch = _named(said.get("arch") or arch, path)
    classes = {"num_classes": said["num_classes"]} if "num_classes" in said else {}
    model = by_name.build(arch, **classes)
    if any(key.endswith(_AUTHORS_FILTERS) for key in state):
        return Loaded(load_authors_checkpoint(_as_the_authors(model, state), path), arch)
    note = ""
    state = _own_part(state, model)
    if "conversion" in said:
        model = _converted(model, said["conversion"])
    else:
        model = _converted(model, options)
        adders = sum(row.decision == "adder" for row in plan(model).rows)
        note = (
            f"{path} does not say which layers are adders: {adders} were taken as such, as "
            f"`adderize plan {arch}` lists them; --exclude '*' takes none"
        )
    load_weights(model, state, path)
    return Loaded(model, arch, note)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise AdderizeError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise AdderizeError(f"{path} is no PyTorch checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise AdderizeError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return content


def _named(arch: str | None, path: Path) -> str:
    if arch is None:
        raise AdderizeError(
            f"{path} holds weights and not the network's code: name what it was built from with "
            f"--arch, {by_name.FORMS}"
        )
    return arch


def _converted(model: nn.Module, options: dict[str, Any] | None) -> nn.Module:
    if options is None or not plan(model, **options).converted:
        return model
    return adderize(model, **options)


def _as_the_authors(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    filters = {key.removeprefix("module.") for key in state if key.endswith(_AUTHORS_FILTERS)}
    entries = {}
    for name in (key.removesuffix(_AUTHORS_FILTERS) for key in filters):
        kind = adder_kind(dict(model.named_modules()).get(name, nn.Identity()))
        if kind is not None:
            entries[name] = {"kind": kind.__name__, "gradient": "full", "norm": None}
    return convert_like(model, entries)


def _own_part(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The entries of the model itself, where it was saved as a part of something (``model.``,
    ``module.``, ``_orig_mod.``)."""
    names = list(model.state_dict())
    if not names or names[0] in state:
        return state
    prefixes = [key.removesuffix(names[0]) for key in state if key.endswith("." + names[0])]
    if not prefixes:
        return state
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in state for name in names))
    start = len(prefix)
    return {key[start:]: tensor for key, tensor in state.items() if key.startswith(prefix)}
