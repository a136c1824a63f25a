"""The norms after adder layers while Lightning trains: a warning, and fresh statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

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


def check_recalibration(pl_module: pl.LightningModule) -> None:
    """Raises before training what would else be raised by the first validation."""
    name = type(pl_module).__name__
    if not is_overridden("forward", pl_module):
        raise MisconfigurationException(
            f"recalibrate_before_validation calls {name}.forward with the input of a batch, but "
            f"{name} defines no forward"
        )
    norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]
    if not any(norm.track_running_stats for norm in norms):
        raise MisconfigurationException(
            f"recalibrate_before_validation is set, but {name} has no batch norm with running "
            "statistics; leave it at 0"
        )


def recalibrate_before_validation(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batches: list[Any]
) -> None:
    """Re-estimates batch-norm statistics on ``batches``, averaged over the processes."""
    from adderize.training.recalibration import recalibrate

    # Validation may run in inference mode, whose tensors could not be trained on afterwards.
    with torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.forward_context():
        recalibrate(pl_module, batches)
        if trainer.world_size > 1:
            _average_statistics(trainer, pl_module)


def _average_statistics(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    mean = trainer.strategy.reduce(torch.cat(buffers), reduce_op="mean")
    assert isinstance(mean, torch.Tensor)
    for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part)


def _norms_after_adders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """For each trained adder the next norm in order of registration, before any other weights."""
    waiting = False
    for name, module in model.named_modules():
        if isinstance(module, AdderConv2d | AdderLinear):
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
