"""Where the parameters of a converted layer and of the norms around it start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adderize.layers import AdderConv2d, AdderLinear


@torch.no_grad()
def initialise(layer: AdderConv2d | AdderLinear, init: str) -> None:
    """Start an adder's filters: "rescale", "normal" or "keep", as in :func:`adderize.adderize`."""
    weight: Tensor = layer.weight
    if init == "normal":
        layer.reset_parameters()
    elif init == "rescale" and weight.numel() and not weight.is_meta:
        deviation = weight.std(correction=0)
        if bool(deviation > 0) and bool(deviation.isfinite()):
            weight.div_(deviation)
        else:
            nn.init.normal_(weight)


def reset_zero_gamma(norm: nn.Module) -> bool:
    """Set a zero-initialised gamma to 1: with zeros the first gradients of an adder vanish."""
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, Tensor) or gamma.is_meta or bool(gamma.detach().any()):
        return False
    nn.init.ones_(gamma)
    return True
