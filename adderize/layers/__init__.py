"""Layers that users hold, with the constructors and state-dict keys of torch's own."""

from adderize.layers.adder import AdderConv2d, AdderLinear
from adderize.layers.base import effective_geometry, pads_with_zeros
from adderize.layers.binary import BinaryConv2d
from adderize.layers.same import AdderConv2dSame
from adderize.layers.shift_add import (
    ShiftAddConv2d,
    ShiftAddLinear,
    ShiftAddNorm1d,
    ShiftAddNorm2d,
)
from adderize.layers.shift_scale import (
    ShiftAddAdaptiveAvgPool2d,
    ShiftAddAvgPool2d,
    ShiftAddLeakyReLU,
    ShiftAddMean,
    ShiftAddScale,
)

Adder = AdderConv2d | AdderLinear
Converted = Adder | BinaryConv2d

__all__ = [
    "Adder",
    "AdderConv2d",
    "AdderConv2dSame",
    "AdderLinear",
    "BinaryConv2d",
    "Converted",
    "ShiftAddAdaptiveAvgPool2d",
    "ShiftAddAvgPool2d",
    "ShiftAddConv2d",
    "ShiftAddLeakyReLU",
    "ShiftAddLinear",
    "ShiftAddMean",
    "ShiftAddNorm1d",
    "ShiftAddNorm2d",
    "ShiftAddScale",
    "effective_geometry",
    "pads_with_zeros",
]
