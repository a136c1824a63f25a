"""What users call: a plan, and the conversion into adders or binary convolutions."""

from __future__ import annotations

from typing import Any

from torch import nn

from adderize.surgery.engine import ADDER, BINARY
from adderize.surgery.execution import convert, preview
from adderize.surgery.options import Patterns, target_named
from adderize.surgery.plan_table import Plan


def plan(
    model: nn.Module,
    *,
    target: str = "adder",
    include: Patterns = None,
    exclude: Patterns = None,
    stem: bool = False,
    head: bool = False,
    linear: bool = False,
    depthwise: bool = True,
    gates: bool = False,
    init: str = "rescale",
    scale: float | None = None,
    norm: str = "insert",
    gradient: str = "full",
    example_input: Any = None,
) -> Plan:
    """What :func:`adderize` or :func:`binarize` would do, layer by layer; the model is left as is.

    While a model is traced, torch.fx patches ``nn.Module`` for the whole process: let no other
    thread call or trace any model meanwhile.

    Args:
        model: any module; its layers may be on any device, the meta device too.
        target: ``"adder"`` for :func:`adderize`, ``"binary"`` for :func:`binarize`.
        All others: as for these.

    Returns:
        the plan: ``print(plan(model))`` shows it as a table; ``to_dict``, ``to_json``, ``to_csv``
        and ``to_markdown`` give it in other forms. Its ``remarks`` name parameters of zeros that
        keep the first gradient from adders, frozen filters, and blocks that would merge adders.

    Raises:
        AdderizeError: as :func:`adderize`, but not for a model without anything to convert, and
            with ``norm="require"`` the missing norms are shown instead.
    """
    arguments = {**locals(), "target": target_named(target)}
    return preview(**arguments)


def adderize(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stem: bool = False,
    head: bool = False,
    linear: bool = False,
    depthwise: bool = True,
    gates: bool = False,
    init: str = "rescale",
    scale: float | None = None,
    norm: str = "insert",
    inplace: bool = True,
    gradient: str = "full",
    example_input: Any = None,
) -> nn.Module:
    """Turn a model's convolutions into adder layers (Chen et al., AdderNet, CVPR 2020).

    The layers stay the same objects with the same parameters, so optimizers, hooks, shared layers
    and state-dict keys stay valid; an inserted norm is the layer's child ``norm``.

    Whatever reads ``layer.weight`` itself takes an adder for a convolution. torch's
    ``fuse_conv_bn_eval`` and blocks that can be re-parameterised (timm's ``reparameterize_model``)
    raise while there are adders in them; loops written by hand cannot be caught.

    While a model is traced, torch.fx patches ``nn.Module`` for the whole process: let no other
    thread call or trace any model meanwhile.

    Args:
        model: any module; one that is called on images as ``model(images)`` is understood best.
        include: shell-style patterns of qualified layer names (``"layer1.*"``); only these.
        exclude: patterns of layers to keep.
        stem: convert the layers that read the model's input too.
        head: convert the layers that produce the model's output too.
        linear: convert ``nn.Linear`` too.
        depthwise: convert depthwise convolutions.
        gates: convert the layers that gate feature maps by pooled vectors (squeeze-excite) too.
        init: ``"rescale"``: the present filters, scaled layer by layer to the deviation `scale`;
            ``"normal"``: drawn from N(0, scale^2), and zero biases, as the paper does; ``"keep"``:
            as they are.
        scale: standard deviation that the filters of each layer start with. By default 8 for
            ``"rescale"``, with which a trained network keeps part of what it knows once its batch
            norms are recalibrated, and the paper's 1 for ``"normal"``.
        norm: where no trainable batch or instance norm follows, ``"insert"`` a batch norm,
            ``"require"`` one (raise), or ``"ignore"`` it (an adder without one hardly learns, also
            before a layer or group norm).
        inplace: False converts a deep copy.
        gradient: ``"full"``, ``"sign"`` or ``"sign_input"``, as in
            :func:`adderize.functional.adder_conv2d`.
        example_input: a tensor, or a tuple of arguments, to run the model on where torch.fx cannot
            trace it; only its shapes and dtypes matter. Guessed by default; where no guess works
            either, the order of registration decides, and a warning says so.

    Returns:
        the model, or the converted copy.

    Raises:
        AdderizeError: a pattern without a match, nothing to convert, a layer without a norm where
            one is required, filters shared with a module that stays, an ``example_input`` on which
            the model fails; wrapped, compiled, scripted, parametrised, lazy, quantized or
            half-precision layers; a forward that does something else with adders, as one that asks
            for the class of a layer. The model is then as it was.
    """
    return convert(target=ADDER, **locals())


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

    While a model is traced, torch.fx patches ``nn.Module`` for the whole process: let no other
    thread call or trace any model meanwhile.

    Args:
        norm: where no trainable norm comes right before, ``"insert"`` a batch norm, ``"require"``
            one (raise), or ``"ignore"`` it.
        All others: as for :func:`adderize.adderize`.

    Returns:
        the model, or the converted copy.

    Raises:
        AdderizeError: as for :func:`adderize.adderize`.
    """
    return convert(target=BINARY, **locals())
