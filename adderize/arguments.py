"""Checks of the arguments that many public functions take."""

from __future__ import annotations

from torch import nn

from adderize.errors import AdderizeError


def check_module(model: object) -> None:
    """Raise unless a model is a module; says so where arguments stand in the wrong order."""
    if isinstance(model, nn.Module):
        return
    found = f"a {type(model).__name__}"
    if isinstance(model, type):
        found = f"the class {model.__name__}, which has to be called first"
    raise AdderizeError(
        f"the model is {found}; expected a torch.nn.Module, the first of the arguments"
    )


def check_switch(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise AdderizeError(f"{key} is {value!r}; expected True or False")
