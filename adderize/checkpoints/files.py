"""Files with weights: PyTorch's, Lightning's, safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import NoneType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adderize.checkpoints.state_dicts import is_extra_state
from adderize.errors import AdderizeError, classed_line, listed

_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")  # the class that torch.load refuses to make
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "net")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")


# Of another type it is somebody else's, of the same name.
_SAID: dict[str, Any] = {
    "arch": str, "arch_options": Mapping, "num_classes": int, "conversion": (Mapping, NoneType),
    "binarization": (Mapping, NoneType),
}  # fmt: skip


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        state: the state dict, as it is stored.
        said: what Lightning's ``hyper_parameters`` say of the network: `arch`, `arch_options`,
            `num_classes`, `conversion`, `binarization`, as far as the file has them.
        note: what had to be chosen, in a sentence; empty where nothing had to.
    """

    state: Mapping[str, Any]
    said: dict[str, Any]
    note: str


def read_file(path: Path) -> Stored:
    """The state dict in a file.

    Args:
        path: of safetensors, or a PyTorch file: a state dict, or a dict with one under
            ``state_dict``, ``model_state_dict``, ``model`` or ``net``. Nothing in it is executed.

    Raises:
        AdderizeError: no such file, a damaged one, or one without a state dict.
    """
    content = _content(path)
    keys = [key for key in _STATE_DICTS if isinstance(content.get(key), dict)]
    filled = [key for key in keys if _is_state_dict(content[key])]
    if len(filled) > 1:
        raise AdderizeError(
            f"{path} holds {len(filled)} state dicts, {' and '.join(filled)}: save the one that "
            "you mean as a file of its own"
        )
    key = next(iter(filled or keys), None)
    state = content if key is None else content[key]
    if not _is_state_dict(state):
        held = f", but {listed([*map(str, content)])}" if content else ""
        raise AdderizeError(
            f"{path} holds no state dict{held}; expected names and tensors, by themselves or under "
            f"{', '.join(_STATE_DICTS)}"
        )
    averages = next((key for key in _AVERAGES if isinstance(content.get(key), dict)), None)
    note = f"{path} holds averaged weights too ({averages}); these are those of {key}"
    return Stored(state, _said(content), note if key and averages else "")


def _said(content: Mapping[str, Any]) -> dict[str, Any]:
    found = content.get("hyper_parameters")
    entries = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in entries if isinstance(value, _SAID.get(key, ()))}


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdderizeError(f"there is no file {path}; expected a checkpoint")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise AdderizeError(
            f"{path} cannot be read: {error}; expected a readable, whole file"
        ) from error
    except UnpicklingError as error:
        foreign = _FOREIGN.search(str(error))
        what = "is not a PyTorch checkpoint"
        if foreign is not None:
            what = f"holds {foreign[1]} objects, which are not read as they could run code"
        raise AdderizeError(
            f"{path} {what}; expected a state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        raise AdderizeError(
            f"{path} is not a PyTorch checkpoint ({classed_line(error)}); expected a file that "
            "torch.save or safetensors wrote"
        ) from error
    if not isinstance(content, dict):
        raise AdderizeError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return content


def _is_state_dict(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(
        isinstance(key, str) and (isinstance(value, Tensor) or is_extra_state(key))
        for key, value in state.items()
    )
