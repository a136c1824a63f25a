"""timm's batch norms with an activation inside, as a batch norm and the activation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

_NORM_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"


@contextlib.contextmanager
def split_norm_activations(model: nn.Module) -> Iterator[None]:
    """Meanwhile a model has a norm and its activation in the place of each such layer."""
    whole = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if f"{type(child).__module__}.{type(child).__name__}" == _NORM_ACTIVATION
    ]
    parts: dict[nn.Module | None, nn.Module] = {}
    for parent, name, child in whole:
        if child not in parts:
            parts[child] = _norm_then_activation(child)
        setattr(parent, name, parts[child])
    try:
        yield
    finally:
        for parent, name, child in whole:
            setattr(parent, name, child)


def _norm_then_activation(whole: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(0, device="meta").eval()
    for table in ("_parameters", "_buffers"):
        norm.__dict__[table] = whole.__dict__[table]
    for key in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        setattr(norm, key, getattr(whole, key))
    return nn.Sequential(norm, whole.drop, whole.act)
