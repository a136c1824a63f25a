"""Networks in evaluation mode for a while, and what hooks see of their layers' inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluation(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode; each module's own mode comes back."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters are; the CPU where there are none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """A layer's input, given by its position or by its name, as hooks ``with_kwargs`` see both."""
    found: Tensor = next(iter((*args, *kwargs.values())))
    return found
