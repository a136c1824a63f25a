"""Networks under torch.compile, also as CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Modes of torch.compile that record CUDA graphs.
WITH_GRAPHS = ("reduce-overhead", "max-autotune")


class OwnGradients:
    """Gradients that do not lie in the memory of CUDA graphs, which each replay writes anew.

    The first backward gives a parameter's gradient as it is, in the graphs' memory: a second one,
    under gradient accumulation, would overwrite it (pytorch/pytorch issue 169545). So it is copied
    once, and from then on gradients are added to the copy, which must be zeroed, not dropped.

    Args:
        network: whose gradients these are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._owned: dict[nn.Parameter, Tensor] = {}

    def begin_step(self) -> None:
        """Before a forward pass: what the last one returned may be overwritten."""
        if next(self._network.parameters()).is_cuda:
            torch.compiler.cudagraph_mark_step_begin()

    def own(self) -> None:
        """After each backward pass."""
        for parameter in self._network.parameters():
            gradient = parameter.grad
            if gradient is not None and gradient is not self._owned.get(parameter):
                parameter.grad = self._owned[parameter] = gradient.clone()


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
