"""Networks under torch.compile, also as CUDA graphs."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

# Modes of torch.compile that record CUDA graphs.
WITH_GRAPHS = ("reduce-overhead", "max-autotune")


class OwnGradients:
    """Gradients that do not lie in the memory of CUDA graphs, which each replay writes anew.

    A step's first backward gives a parameter's gradient as it is, in the graphs' memory: a second
    one, under gradient accumulation, would overwrite it (pytorch/pytorch issue 169545). So all are
    copied at once, and later ones are added to the copies.

    Args:
        network: whose gradients these are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return [*self._network.parameters()]

    @cached_property
    def _owned(self) -> list[Tensor | None]:
        """By the parameters' numbers: a tensor's hash takes the host a microsecond."""
        return [None] * len(self._parameters)

    def begin_step(self) -> None:
        """Before a forward pass: what the last one returned may be overwritten."""
        if self._parameters[0].is_cuda:
            torch.compiler.cudagraph_mark_step_begin()

    def own(self) -> None:
        """After each backward pass."""
        new = {
            number: parameter.grad
            for number, (parameter, owned) in enumerate(
                zip(self._parameters, self._owned, strict=True)
            )
            if parameter.grad is not None and parameter.grad is not owned
        }
        if not new:
            return
        # Times one: there is no _foreach_clone, and _foreach_copy_ leaves versions as they were.
        for number, gradient in zip(new, torch._foreach_mul([*new.values()], 1.0), strict=True):
            self._parameters[number].grad = self._owned[number] = gradient


def compile_network(network: nn.Module, mode: str) -> OwnGradients | None:
    """Compiles a network in place, at its first call; gradients to own where there are graphs.

    CUDA graphs are recorded for each size of batch: a graph for all sizes would be recorded anew
    whenever the size changes.
    """
    if mode not in WITH_GRAPHS:
        network.compile(mode=mode)
        return None
    network.compile(mode=mode, dynamic=False)
    return OwnGradients(network)
