"""Checks of the arguments that many public functions take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeGuard

from torch import nn

from adderize.errors import AdderizeError


def own_path(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` is the user's own folder, as a shell has it: not one of that name here."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no user of that name
        return Path(path)


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


def is_finite(value: object) -> TypeGuard[float]:
    """Whether an argument is a finite number, and no switch."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def check_choice(key: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise AdderizeError(f"{key} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def checked_statistics(
    mean: Iterable[float], std: Iterable[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A mean and deviation of images of so many channels, pixels in [0, 1], as plain numbers.

    Statistics of bytes are refused: images normalised with them would all be nearly alike.
    """
    found: list[object] = [mean, std]
    try:
        means, deviations = (tuple(map(float, values)) for values in (mean, std))
        found = [means, deviations]
        fits = len(means) == len(deviations) == channels
        if fits and all(0 <= m <= 1 for m in means) and all(0 < d <= 1 for d in deviations):
            return means, deviations
    except (TypeError, ValueError):  # a single number, of which an array makes one too, or none
        pass
    raise AdderizeError(
        "mean is {} and std {}; expected {} of each, of pixels in [0, 1] (those of bytes are "
        "divided by 255), std above 0 and at most 1".format(*found, channels)
    )
