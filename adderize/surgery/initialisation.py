"""Where the parameters of a converted layer and of the norms around it start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adderize.layers import Adder


def initialise(layer: Adder, init: str, scale: float | None) -> None:
    """Start an adder's filters: "rescale", "normal" or "keep", as in :func:`adderize.adderize`."""
    weight: Tensor = layer.weight
    if scale is None or not weight.numel():
        return
    with _changing(weight):
        _draw_or_scale(layer, weight, init, scale)


@contextlib.contextmanager
def _changing(tensor: Tensor) -> Iterator[None]:
    # What was made in inference mode can be changed there only. The mode also sets that of grad.
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        yield


def _draw_or_scale(layer: Adder, weight: Tensor, init: str, scale: float) -> None:
    deviation = weight.std(correction=0) if init == "rescale" and not weight.is_meta else None
    if deviation is not None and bool(deviation > 0) and bool(deviation.isfinite()):
        weight.mul_(scale / deviation)
    elif init == "rescale":
        nn.init.normal_(weight, std=scale)
    else:
        layer.reset_parameters()
        weight.mul_(scale)


def reset_zero_gamma(norm: nn.Module) -> None:
    """Set a zero-initialised gamma to 1: with zeros the first gradients of an adder vanish."""
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, Tensor) or is_lazy(gamma) or gamma.is_meta:
        return
    if not bool(gamma.detach().any()):
        start_at_one(gamma)


def start_at_one(parameter: Tensor) -> None:
    with _changing(parameter):
        nn.init.ones_(parameter)
