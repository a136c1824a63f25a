"""Turning a model's convolutions into binary ones, the networks that adders are compared with."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from adderize.layers.binary import BinaryConv2d
from adderize.surgery.checks import check_model
from adderize.surgery.engine import BINARY, become
from adderize.surgery.norms import insert_norm, reset_zero_gamma
from adderize.surgery.policy import Options, Patterns, check_switch
from adderize.surgery.steps import chosen_steps, find_steps, warn_optimizers, warn_untraced


def binarize(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stem: bool = False,
    head: bool = False,
    depthwise: bool = True,
    gates: bool = False,
    norm: str = "insert",
    inplace: bool = True,
    example_input: Any = None,
) -> nn.Module:
    """Turn a model's convolutions into :class:`adderize.BinaryConv2d` (XNOR-Net, ECCV 2016).

    The same layers as :func:`adderize.adderize` takes, in the same way: they stay the same objects
    with the same parameters. Linear layers stay; so do convolutions of other classes than
    ``nn.Conv2d``.

    Networks are written convolution, norm, ReLU: behind the ReLU no sign is left, and a network
    binarised as it stands computes the same for every image. XNOR-Net's order is norm, sign,
    convolution, so a binary layer gets a batch norm of its own for its input, the child ``norm``,
    unless its input comes from trainable norms through reshapes, dropout or average pooling only.
    The rest of the network, its rectifiers too, stays as it is.

    Args:
        model: any module; one that is called on images as ``model(images)`` is understood best.
        include: shell-style patterns of qualified layer names (``"layer1.*"``); only these.
        exclude: patterns of layers to keep.
        stem: convert the layers that read the model's input too.
        head: convert the layers that produce the model's output too.
        depthwise: convert depthwise convolutions.
        gates: convert the layers that gate feature maps by pooled vectors (squeeze-excite) too.
        norm: where no trainable norm comes right before, ``"insert"`` a batch norm, ``"require"``
            one (raise), or ``"ignore"`` it.
        inplace: False converts a deep copy.
        example_input: as for :func:`adderize.adderize`.

    Returns:
        the model, or the converted copy.

    Raises:
        AdderizeError: as for :func:`adderize.adderize`.
    """
    options = Options.checked(
        include=include, exclude=exclude, stem=stem, head=head, depthwise=depthwise, gates=gates,
        norm=norm,
    )  # fmt: skip
    check_switch("inplace", inplace)
    if not inplace:
        check_model(model)
        model = copy.deepcopy(model)
    steps = find_steps(model, options, example_input, BINARY)
    chosen = chosen_steps(steps, options, BINARY)
    warn_untraced(steps, BINARY)
    for step in chosen:
        become(step.layer, BinaryConv2d)
        assert isinstance(step.layer, BinaryConv2d)
        if step.row.norm == "inserted":
            insert_norm(step.layer)
        for found in step.norms:
            reset_zero_gamma(found)
    if chosen:
        warn_optimizers(model, chosen)
    return model
