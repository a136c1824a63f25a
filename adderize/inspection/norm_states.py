"""The norms of a model: which layer each one follows, and whether its statistics fit."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adderize.dataflow import Flow, flow_of
from adderize.inspection.measurement import batches_of
from adderize.inspection.rows import NormState
from adderize.layers import Adder
from adderize.surgery.norms import find_norms_after, is_norm, is_trainable_norm
from adderize.training.recalibration import estimate_statistics, tracking_norms

# Fewer images give no statistics worth comparing with.
_LEAST_IMAGES = 16


class NormStates(NamedTuple):
    """States by norm, and by the layer whose outputs go to it."""

    by_norm: dict[nn.Module, NormState]
    after: dict[nn.Module, NormState]


def find_norm_states(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    flows: Sequence[Flow],
    stale: Mapping[_NormBase, tuple[float, float]],
) -> NormStates:
    states = {
        module: _state(name, module, stale.get(module) if isinstance(module, _NormBase) else None)
        for name, module in model.named_modules()
        if is_norm(module)
    }
    after = {}
    for layer in layers.values():
        norm = _norm_after(layer, model, flows)
        if norm is not None:
            after[layer] = states[norm]
    return NormStates(states, after)


def _norm_after(layer: nn.Module, model: nn.Module, flows: Sequence[Flow]) -> nn.Module | None:
    own = layer.norm if isinstance(layer, Adder) else None
    if own is not None:
        return own
    flow = flow_of(flows, layer)
    found = find_norms_after(flow, layer, model)
    if not found and flow:
        users = [user.module for call in flow.calls(layer) for user in call.users]
        found = [user for user in users if user is not None and is_norm(user)]
    return found[0] if found else None


def _state(name: str, norm: nn.Module, stale: tuple[float, float] | None) -> NormState:
    gamma = getattr(norm, "weight", None)
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    counter = getattr(norm, "num_batches_tracked", None)
    untouched = (
        isinstance(mean, Tensor)
        and isinstance(variance, Tensor)
        and not bool(mean.any())
        and bool((variance == 1).all())
    )
    size = gamma.detach().abs() if isinstance(gamma, Tensor) else None
    return NormState(
        name=name,
        kind=type(norm).__name__,
        frozen=not is_trainable_norm(norm),
        running=isinstance(mean, Tensor),
        updated=not untouched,
        batches=int(counter) if isinstance(counter, Tensor) else None,
        smallest_gamma=None if size is None else float(size.min()),
        largest_gamma=None if size is None else float(size.max()),
        mean_shift=None if stale is None else stale[0],
        variance_ratio=None if stale is None else stale[1],
    )


@torch.no_grad()
def staleness(
    model: nn.Module, images: Tensor, called: Container[nn.Module]
) -> dict[_NormBase, tuple[float, float]]:
    """How far the running statistics are from those of the images.

    The images' statistics are what :func:`adderize.recalibrate` would set, so a norm is not blamed
    for what stale statistics before it do to its input.

    Returns:
        for each batch norm among the called, the root mean square over channels of the mean's
        shift, in running deviations, and the geometric mean of the variances' ratio, images to
        running. Empty with fewer than 16 images.
    """
    norms = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, _NormBase) and m.running_mean is not None and m in called
    }
    if not norms or len(images) < _LEAST_IMAGES:
        return {}
    fresh = copy.deepcopy(model)
    estimate_statistics(fresh, tracking_norms(fresh), batches_of(model, images), fresh)
    found = {}
    for name, norm in norms.items():
        other = fresh.get_submodule(name)
        assert isinstance(other, _NormBase)
        assert norm.running_mean is not None and other.running_mean is not None
        assert norm.running_var is not None and other.running_var is not None
        variance = norm.running_var + norm.eps
        shift = (other.running_mean - norm.running_mean).square() / variance
        ratio = (other.running_var + norm.eps) / variance
        found[norm] = float(shift.mean().sqrt()), float(ratio.log().mean().exp())
    return found
