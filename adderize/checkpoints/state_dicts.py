"""State dicts: which part of one belongs to a model, and how it is loaded whole or not at all."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError, listed, one_line

# What torch.compile, FSDP and activation checkpointing put between the names of wrapped modules.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Files older than this counter lack it, and torch fills it in.
_COUNTER = "num_batches_tracked"


class StateDict(OrderedDict[str, Any]):
    """Names and tensors, and torch's ``_metadata``: the version that each module's entries have."""

    _metadata: dict[str, dict[str, Any]] | None = None


def own_part(state: Mapping[str, Any], names: Iterable[str], source: Path) -> tuple[StateDict, str]:
    """The entries of a model, where it was saved as a part of something or wrapped.

    Args:
        state: its keys may all begin with ``module.`` (DataParallel, DistributedDataParallel) or
            ``model.`` (a LightningModule's attribute), and may have other entries beside.
        names: of the model's own state dict.
        source: for errors.

    Returns:
        the entries without the prefix, and the prefix.

    Raises:
        AdderizeError: several parts fit the model.
    """
    own = set(names)
    wrappers = [part for part in _WRAPPERS if not any(part in name for name in own)]
    plain = {key: _without(key, wrappers) for key in state}
    # Counters tell no parts apart: older files lack them.
    telling = {name for name in own if not name.endswith(_COUNTER)}
    fits = Counter(prefix for key in plain.values() for prefix in _prefixes(key, telling))
    most = max(fits.values(), default=0)
    best = sorted(prefix for prefix, count in fits.items() if count == most)
    if len(best) > 1 and "" not in best and 2 * most >= len(telling):
        raise AdderizeError(
            f"{source} holds the weights of this model {len(best)} times, as {listed(best)}: save "
            "the part that you mean as a file of its own"
        )
    prefix = "" if "" in best or not best else best[0]
    found = StateDict(
        (key.removeprefix(prefix), state[full])
        for full, key in plain.items()
        if key.startswith(prefix)
    )
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        modules = {_without(f"{name}.", wrappers): value for name, value in metadata.items()}
        modules = {"" if name == "." else name: value for name, value in modules.items()}
        found._metadata = {
            name.removeprefix(prefix).removesuffix("."): value
            for name, value in modules.items()
            if name.startswith(prefix)
        }
    return found, prefix


def _without(key: str, parts: Iterable[str]) -> str:
    for part in parts:
        key = key.replace(part, "")
    return key


def _prefixes(key: str, names: set[str]) -> Iterator[str]:
    start = 0
    while True:
        if key[start:] in names:
            yield key[:start]
        start = key.find(".", start) + 1
        if not start:
            return


def aliases_of(model: nn.Module) -> dict[str, str]:
    """State-dict names of shared tensors -> the first such name of each."""
    first: dict[Tensor, str] = {}
    aliases: dict[str, str] = {}
    state = model.state_dict()
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if name in state and first.setdefault(tensor, name) != name:
            aliases[name] = first[tensor]
    return {name: aliases[name] for name in state if name in aliases}


def load_weights(model: nn.Module, state: Mapping[str, Any], source: Path) -> None:
    """Load a state dict strictly; into parameters on the meta device by assignment.

    Raises:
        AdderizeError: names, shapes or kinds of numbers that do not fit; nothing was loaded then.
            Tensors on the meta device that share memory otherwise than as one tensor.
    """
    _check_fit(model, state, source)
    aliases = aliases_of(model)
    meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    if meta:
        _check_views(model, aliases)
    try:
        model.load_state_dict(state, strict=True, assign=meta)
    except Exception as error:
        raise AdderizeError(
            f"the weights of {source} do not belong to this model: {one_line(error)}"
        ) from error
    # Assigning gives each name a parameter of its own.
    for alias, name in aliases.items() if meta else ():
        owner, _, key = name.rpartition(".")
        other, _, other_key = alias.rpartition(".")
        setattr(model.get_submodule(other), other_key, getattr(model.get_submodule(owner), key))


def _check_fit(model: nn.Module, state: Mapping[str, Any], source: Path) -> None:
    """Raise before anything is loaded: load_state_dict copies what fits, then raises."""
    expected = model.state_dict()
    pairs = {name: (state[name], entry) for name, entry in expected.items() if name in state}
    problems = [
        problem
        for name, (found, entry) in pairs.items()
        if not is_extra_state(name) and (problem := _misfit(name, found, entry)) is not None
    ]
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    unexpected = [name for name in state if name not in expected]
    if missing:
        problems.append(f"they lack {listed(missing)}")
    if unexpected:
        problems.append(f"the model lacks {listed(unexpected)}")
    if problems:
        raise AdderizeError(
            f"the weights of {source} do not belong to this model: {listed(problems, '; ')}. Build "
            "it as theirs was, with the same arguments (of commands: --arch, --arch-options)"
        )


def is_extra_state(name: str) -> bool:
    """Whether an entry is what a module's ``get_extra_state`` gave, of any type and shape."""
    return name.rpartition(".")[2] == "_extra_state"


def _misfit(name: str, found: Any, expected: Any) -> str | None:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        if isinstance(found, Tensor) == isinstance(expected, Tensor):
            return None
        return f"{name} is a {type(found).__name__}, expected a {type(expected).__name__}"
    if found.shape != expected.shape:
        return f"{name} has the shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if _kind(found.dtype) != _kind(expected.dtype):
        return f"{name} holds {found.dtype}, expected {expected.dtype}"
    return None


def _kind(dtype: torch.dtype) -> str:
    """Numbers of one kind are copied into each other as what they are; others would be cut off."""
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"


def _check_views(model: nn.Module, aliases: Mapping[str, str]) -> None:
    first: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_meta or name in aliases:
            continue
        if (other := first.setdefault(tensor.untyped_storage()._cdata, name)) != name:
            raise AdderizeError(
                f"{other} and {name} share memory, which the meta device cannot keep: build the "
                "model on the CPU"
            )
