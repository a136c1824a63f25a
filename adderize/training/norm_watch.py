"""A warning of norms after adder layers that do not train with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from adderize.layers import Adder
from adderize.surgery.norms import is_norm
from adderize.training.adaptive_rate import held_by


def warn_of_untrained_norms(model: nn.Module, optimizers: Collection[Optimizer]) -> bool:
    """Warns where norms after trained adders are frozen, in eval mode or in no optimizer.

    Returns:
        whether it did.
    """
    optimized = held_by(optimizers)
    norms = _norms_after_adders(model, optimized)
    reasons = {name: _why_untrained(norm, optimized) for name, norm in norms}
    untrained = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if untrained:
        rank_zero_warn(
            "Adder layers need a norm that trains with them after each one, but these do not: "
            f"{', '.join(untrained)}. Keep them in training mode with requires_grad, and make the "
            "optimizer after adderize(model): norms that it inserts are new parameters"
        )
    return bool(untrained)


def _norms_after_adders(
    model: nn.Module, optimized: Collection[int]
) -> Iterator[tuple[str, nn.Module]]:
    """For each trained adder the next norm in order of registration, before any other weights."""
    waiting = False
    for name, module in model.named_modules():
        if isinstance(module, Adder):
            waiting = module.weight.requires_grad and id(module.weight) in optimized
        elif waiting and is_norm(module):
            yield name, module
            waiting = False
        elif any(True for _ in module.parameters(recurse=False)):
            waiting = False


def _why_untrained(norm: nn.Module, optimized: Collection[int]) -> str | None:
    if isinstance(norm, _NormBase) and norm.track_running_stats and not norm.training:
        return "in eval mode"
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return None
    if not weight.requires_grad:
        return "frozen"
    # Of a parametrised norm the weight is computed from its parameters.
    held = any(id(parameter) in optimized for parameter in norm.parameters())
    return None if held else "in no optimizer"
