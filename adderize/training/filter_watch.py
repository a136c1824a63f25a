"""A warning of adders that are about to train a convolution's filters."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from adderize.layers import AdderConv2d, AdderLinear
from adderize.surgery.small_filters import deviation_of_convolutions
from adderize.training.search import modules_of


def warn_of_convolutions_filters(model: nn.Module) -> None:
    """Warns where adders that train with the gradient "full" hold a convolution's filters.

    They do after a convolutional network's checkpoint was loaded. Those that
    :mod:`adderize.transfer` has fitted are small too, and train with another gradient.
    """
    layers = [
        layer
        for layer in modules_of(model, AdderConv2d, AdderLinear)
        # A shard tells nothing of the whole.
        if layer.gradient == "full" and type(layer._parameters.get("weight")) is nn.Parameter
        if layer.weight.requires_grad and not layer.weight.is_meta
    ]
    deviation = deviation_of_convolutions(layers)
    if deviation is not None:
        rank_zero_warn(
            f"The adders' filters have a standard deviation of {deviation:.2g}, as a convolution's "
            "have; adders start from 1 and grow, and with such filters compute nothing useful. Was "
            "a checkpoint of the convolutional network loaded? Load it before adderize(model), "
            "which scales the filters, or see adderize.transfer"
        )
