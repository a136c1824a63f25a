"""Channels that norms take for constant: they would scale what is nothing but rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.undisturbed import restored
from adderize.layers import Adder
from adderize.quantize.fuse import Fusion
from adderize.quantize.qparams import QParams

# The share of eps below which a variance is a constant's: it shows as 1 % of the norm's scale.
_CONSTANT = 1e-4


def never_vary(norm: _BatchNorm) -> Tensor:
    """The channels of which a norm saw constants only."""
    assert norm.running_var is not None
    return norm.running_var < _CONSTANT * norm.eps


def taken_for_constant(norm: _BatchNorm, rounding: float) -> Tensor:
    """The channels whose variance is below eps and below that of the rounding."""
    assert norm.running_var is not None
    return norm.running_var.double() < min(norm.eps, rounding)


def distance_variance(layer: Adder, input: QParams) -> float:
    """Of a layer's distances, by the rounding of its input alone."""
    return layer.weight[0].numel() * input.scale**2 / 12


@torch.no_grad()
def centre_constants(prepared: nn.Module, fusions: Sequence[Fusion], inputs: Tensor) -> None:
    """Tell norms what rounding makes of the channels that they take for constant.

    It moves them, such as those of depthwise layers behind dead channels, by another constant,
    which the norm would multiply by up to 1/sqrt(eps) until its statistics have followed.

    Args:
        prepared: in evaluation mode; its adders round.
        fusions: these adders and the norms behind them.
        inputs: some images.
    """
    uses = Counter(fusion.norms[0] for fusion in fusions if fusion.norms)
    means: dict[_BatchNorm, Tensor] = {}
    with restored(prepared):  # of which the means are no part: the hooks come later
        for fusion in fusions:
            norm = fusion.norms[0] if fusion.norms else None
            if not isinstance(norm, _BatchNorm) or uses[norm] > 1:
                continue
            layer: Any = prepared.get_submodule(fusion.target)
            constant = taken_for_constant(norm, distance_variance(layer, layer.grid.qparams))
            if bool(constant.any()):
                norm.register_forward_pre_hook(_centring(constant, means))
        prepared(inputs.clone())
    for norm, mean in means.items():
        assert norm.running_mean is not None
        norm.running_mean.copy_(mean)


def _centring(constant: Tensor, means: dict[_BatchNorm, Tensor]) -> Callable[..., None]:
    def centre(norm: Any, args: tuple[Tensor, ...]) -> None:
        means[norm] = torch.where(constant, _channel_means(args[0]), norm.running_mean)
        norm.running_mean.copy_(means[norm])  # what comes next in this run sees it, too

    return centre


def _channel_means(values: Tensor) -> Tensor:
    return values.movedim(1, -1).flatten(0, -2).mean(0)
