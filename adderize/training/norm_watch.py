"""A warning of norms after adder layers that do not train with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from adderize.dataflow import NORMS
from adderize.layers import AdderConv2d, AdderLinear


def warn_of_untrained_norms(model: nn.Module) -> bool:
    """Warns where norms after trained adders are frozen or in eval mode; whether it did."""
    reasons = {name: _why_untrained(norm) for name, norm in _norms_after_adders(model)}
    untrained = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if untrained:
        rank_zero_warn(
            "Adder layers need a norm that trains with them after each one, but these do not: "
            f"{', '.join(untrained)}. Keep them in training mode with requires_grad"
        )
    return bool(untrained)


def _norms_after_adders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """For each trained adder the next norm in order of registration, before any other weights."""
    waiting = False
    for name, module in model.named_modules():
        if isinstance(module, (AdderConv2d, AdderLinear)):
            waiting = module.weight.requires_grad
        elif waiting and _is_norm(module):
            yield name, module
            waiting = False
        elif any(parameter is not None for parameter in module._parameters.values()):
            waiting = False


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.startswith("FrozenBatchNorm")


def _why_untrained(norm: nn.Module) -> str | None:
    if isinstance(norm, _NormBase) and norm.track_running_stats and not norm.training:
        return "in eval mode"
    weight = getattr(norm, "weight", None)
    if isinstance(weight, torch.Tensor) and not weight.requires_grad:
        return "frozen"
    return None
