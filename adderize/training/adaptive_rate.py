"""The adaptive local learning rate of adder filters, for any training loop.

The gradient of an adder layer's filters shrinks as the layer's fan-in grows: its norm lies orders
of magnitude below that of a convolution. The rule gives every filter tensor a gradient of the same
root mean square, ``eta`` (Chen et al., AdderNet, CVPR 2020, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adderize.arguments import check_module, is_finite
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.training.unscaled import check_unscaled

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class AdderGradients:
    """What :func:`scale_adder_gradients_` found and did, for L filter tensors.

    Attributes:
        names: L layer names as in ``model.named_modules()``.
        norms: (L,), the L2 norm of each gradient before the rule; over all shards where sharded.
        rates: (L,), the factor each gradient was multiplied with; 1 where it was left alone.
    """

    names: list[str]
    norms: Tensor
    rates: Tensor

    def to_dict(self) -> dict[str, float]:
        """``{"grad_norm/<layer>": ..., "adaptive_lr/<layer>": ...}``, at one synchronisation."""
        norms, rates = torch.stack([self.norms, self.rates]).tolist()
        rows = zip(self.names, norms, rates, strict=True)
        return {
            key: value
            for name, norm, rate in rows
            for key, value in ((f"grad_norm/{name}", norm), (f"adaptive_lr/{name}", rate))
        }


@torch.no_grad()
def scale_adder_gradients_(
    model: nn.Module, eta: float = 0.2, *, optimizer: Optimizer | None = None
) -> AdderGradients:
    """Gives the gradient of every adder filter tensor the norm ``eta * sqrt(numel)``, in place.

    ``g <- g * eta * sqrt(numel) / ||g||_2`` over each whole tensor. A gradient whose norm is not
    finite or is below 1e-12 is left alone. Biases and all other parameters are never touched.

    Call it right before ``optimizer.step()``: after gradient accumulation, all-reduce, fp16
    unscaling (``scaler.unscale_(optimizer)``) and gradient clipping; never inside backward. A loop
    that leaves the call out trains without the rule, and nothing says so.
    Nothing waits for the device. Sharded gradients (FSDP2, ``DTensor``) get their global norm by
    one all-reduce; every rank must make the call. In Lightning use
    :class:`adderize.AdaptiveLearningRate`.

    Args:
        model: a module that holds adder layers. A filter tensor shared by layers is scaled once.
        eta: finite and above 0. The authors' code uses 0.2, the paper's text says 0.1.
        optimizer: where given, only the filters that it holds are scaled.

    Returns:
        ``names`` of the layers whose filters had a gradient, ``norms`` of the gradients before the
        rule, and ``rates``, the factors; ``to_dict()`` gives them to a logger.

    Raises:
        AdderizeError: ``eta`` out of range, a model without adder layers, sparse gradients,
            filters that are not parameters of their layer, FSDP1, whose shards are plain tensors
            without a global norm, and gradients that the scaler of Fabric's or Lightning's
            "16-mixed" still has to unscale, where the model or the optimizer is their wrapper.

    Example::

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scale_adder_gradients_(model, eta=0.2)
        scaler.step(optimizer)
        scaler.update()
    """
    check_module(model)
    check_eta(eta)
    filters = adder_filters(model)
    if not filters:
        raise AdderizeError(
            f"{type(model).__name__} holds no adder layers, so there is no gradient to scale; "
            "call adderize(model) first"
        )
    check_unscaled(model, optimizer)
    if optimizer is not None:
        filters = held_filters(filters, optimizer)
    return scale_gradients_(filters, eta)


@torch.no_grad()
def scale_gradients_(filters: dict[str, nn.Parameter], eta: float) -> AdderGradients:
    """The rule on the gradients of ``filters``, those that have one."""
    gradients = {name: w.grad for name, w in filters.items() if w.grad is not None}
    if not gradients:
        none = torch.zeros(0, device="cpu", dtype=torch.float32)
        return AdderGradients([], none, none)
    for name, gradient in gradients.items():
        _check_gradient(name, gradient)

    local = [_local(gradient) for gradient in gradients.values()]
    norms = _global_norms(list(gradients.values()), local)
    # Scalars go into the kernel's arguments: a tensor of sizes would have to be copied there.
    rms = _stack(torch._foreach_div(norms, [math.sqrt(g.numel()) for g in gradients.values()]))
    norm = _stack(norms)
    rate = torch.where((norm >= _SMALLEST_NORM) & (norm < math.inf), eta / rms, 1.0)
    factors = [r.to(g.device, g.dtype) for r, g in zip(rate.unbind(), local, strict=True)]
    torch._foreach_mul_(local, factors)
    return AdderGradients(list(gradients), norm, rate)


def check_eta(eta: float) -> float:
    """Returns ``eta``; raises AdderizeError where it is not finite and above 0."""
    if not is_finite(eta) or eta <= 0:
        raise AdderizeError(f"eta is {eta!r}; expected a finite number above 0, such as 0.2")
    return float(eta)


def adder_filters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The filter tensors of all adder layers by layer name, each tensor once.

    Raises:
        AdderizeError: filters that are not plain parameters of their layer.
    """
    filters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, (AdderConv2d, AdderLinear)):  # dynamo of torch 2.6 takes no union
            continue
        name = name or type(layer).__name__
        weight = layer._parameters.get("weight")
        if weight is None or getattr(weight, "_fsdp_flattened", False):
            raise AdderizeError(
                f"layer {name}: the filters are not a parameter of the layer, as under "
                "FullyShardedDataParallel (FSDP1) or a parametrisation; expected a plain "
                "parameter. Shard with fully_shard (FSDP2) and remove parametrisations"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            filters[name] = weight
    return filters


def held_filters(filters: dict[str, nn.Parameter], optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Those of ``filters`` that ``optimizer`` steps."""
    held = held_by([optimizer])
    return {name: weight for name, weight in filters.items() if id(weight) in held}


def held_by(optimizers: Iterable[Optimizer]) -> set[int]:
    """The identities of all parameters that some optimizers step."""
    return {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _check_gradient(name: str, gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise AdderizeError(
            f"layer {name}: the gradient of the filters has layout {gradient.layout}; "
            "expected a dense gradient (torch.strided)"
        )
    if is_dtensor(gradient) and any(p.is_partial() for p in gradient.placements):
        raise AdderizeError(
            f"layer {name}: the gradient of the filters is a partial sum {gradient.placements}; "
            "expected a sharded or replicated DTensor. Reduce the gradients before scaling them"
        )


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if is_dtensor(gradient) else gradient


def _stack(scalars: Sequence[Tensor]) -> Tensor:
    """0-d tensors, possibly of several devices and dtypes, as one vector."""
    first = scalars[0]
    return torch.stack([scalar.to(first.device, first.dtype) for scalar in scalars])


def _global_norms(gradients: list[Tensor], local: list[Tensor]) -> list[Tensor]:
    """One norm a gradient; those sharded over the same mesh share one all-reduce."""
    norms = list(torch._foreach_norm(local))
    sharded: dict[tuple[DeviceMesh, tuple[bool, ...]], list[int]] = {}
    for index, gradient in enumerate(gradients):
        if is_dtensor(gradient):
            shards = tuple(not p.is_replicate() for p in gradient.placements)
            sharded.setdefault((gradient.device_mesh, shards), []).append(index)
    for (mesh, shards), indices in sharded.items():
        total = _reduce_over_shards(_stack([norms[i] for i in indices]), mesh, shards)
        for i, norm in zip(indices, total.unbind(), strict=True):
            norms[i] = norm
    return norms


def _reduce_over_shards(norms: Tensor, mesh: DeviceMesh, shards: tuple[bool, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Partial("sum") if shard else Replicate() for shard in shards]
    # In float64: the squares of float32 norms leave float32's range.
    squares = DTensor.from_local(norms.double().square(), mesh, placements, run_check=False)
    return squares.full_tensor().sqrt().to(norms.dtype)
