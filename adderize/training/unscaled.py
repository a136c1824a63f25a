"""Gradients that a gradient scaler of float16 has yet to divide by its scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adderize.errors import AdderizeError


def check_fused(optimizer: Optimizer, kwargs: dict[str, Any] | None = None) -> None:
    """Raise in the step of an optimizer whose kernel unscales the gradients itself."""
    if getattr(optimizer, "grad_scale", None) is not None or "grad_scaler" in (kwargs or {}):
        raise AdderizeError(
            f"the fused {type(optimizer).__name__} unscales fp16 gradients inside its step, so "
            "the adaptive rate would act on scaled ones. Create it with fused=False, or train "
            "in bfloat16"
        )


def check_unscaled(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Raise where the scaler of Fabric's or Lightning's wrappers still has to unscale gradients.

    It would do so in the step, and so divide what the rule gives by its scale, 65536 at first.
    """
    if optimizer is not None:
        check_fused(optimizer)
    held = optimizer, getattr(optimizer, "optimizer", None)
    ids = {id(each) for each in held if each is not None}
    for wrapper in (model, optimizer):
        scaler = _scaler(wrapper)
        if scaler is None or not scaler.is_enabled():
            continue
        states = scaler._per_optimizer_states.items()
        stages = [state["stage"] for of, state in states if of in ids or not ids]
        if all(stage.name == "READY" for stage in stages):
            raise AdderizeError(
                f"the gradients are still scaled: the GradScaler of {type(wrapper).__name__} would "
                "divide what the adaptive rate gives them in the optimizer's step. "
                "Use adderize.AdaptiveLearningRate in Lightning's Trainer. In Fabric make the "
                "call in the step, by optimizer.register_step_pre_hook(lambda *_: "
                "scale_adder_gradients_(model)) before the loop, or after fabric.clip_gradients; "
                "or train in bfloat16"
            )


def _scaler(wrapper: Any) -> torch.amp.GradScaler | None:
    """That of a strategy's precision: Fabric's modules and optimizers and Lightning's optimizers
    hold the strategy, a LightningModule its trainer or its Fabric."""
    runners = getattr(wrapper, "_trainer", None), getattr(wrapper, "_fabric", None)
    strategies = (getattr(runner, "strategy", None) for runner in runners)
    for strategy in (getattr(wrapper, "_strategy", None), *strategies):
        for name in ("precision", "precision_plugin"):
            scaler = getattr(getattr(strategy, name, None), "scaler", None)
            if isinstance(scaler, torch.amp.GradScaler):
                return scaler
    return None
