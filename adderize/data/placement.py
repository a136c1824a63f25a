"""Data stays in the computer's memory, whatever torch's default device is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_cpu(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function with the CPU as torch's default device."""

    @functools.wraps(function)
    def placed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return placed
