"""Layers that users hold, with the constructors and state-dict keys of torch's own."""

from adderize.layers.adder import AdderConv2d, AdderLinear
from adderize.layers.binary import BinaryConv2d
from adderize.layers.same import AdderConv2dSame

__all__ = ["AdderConv2d", "AdderConv2dSame", "AdderLinear", "BinaryConv2d"]
