"""What a network takes of a batch, as loaders give it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adderize.errors import AdderizeError, classed_line


def model_of_input(
    model: nn.Module, batch: Any, device: torch.device, *, option: str = "forward"
) -> Any:
    """``model(input)`` of batches that need no ``option``, or an error that asks for it."""
    name = type(model).__name__
    ask = f'pass {option}, such as {option}=lambda model, batch: model(batch["image"])'
    several = isinstance(batch, (tuple, list))
    if several and not batch:
        raise AdderizeError("a batch is empty; expected a tensor, or a tuple that starts with one")
    if several and len(batch) > 2 and (names := _inputs(model)[1:]):
        raise AdderizeError(
            f"a batch holds {len(batch)} elements and {name}.forward takes {', '.join(names)} "
            f"beside its first input, so what it gets of them is not clear; {ask}"
        )
    inputs = moved(batch[0] if several else batch, device)
    try:
        return model(inputs)
    except Exception as error:
        if isinstance(inputs, Tensor) and not isinstance(error, TypeError):
            raise
        raise AdderizeError(
            f"{name} cannot be called with {described(inputs)} from a batch: "
            f"{classed_line(error)}. If its input is another, {ask}"
        ) from error


def _inputs(model: nn.Module) -> list[str]:
    """The names of what ``forward`` takes by position."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in by_position]


def described(inputs: Any) -> str:
    """What a batch gives a network, for errors."""
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return f"a {type(inputs).__name__} of {list(inputs)}"
    return f"a {type(inputs).__name__}"


def moved(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``: in containers, dataclasses, whatever has ``to``."""

    def leaf(value: Any) -> Any:
        if callable(getattr(value, "to", None)):
            return value.to(device)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(
                value, **{name: moved(getattr(value, name), device) for name in fields}
            )
        return value

    return pytree.tree_map(leaf, batch)
