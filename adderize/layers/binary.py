"""BinaryConv2d: the binary networks that adder networks are compared with."""

from __future__ import annotations

from torch import Tensor

from adderize.functional import binary_conv2d
from adderize.layers import scripted
from adderize.layers.base import ConvLayer
from adderize.layers.batches import as_batch, normed
from adderize.layers.fusion import NotFusible


class BinaryConv2d(NotFusible, ConvLayer):
    """XNOR-Net's convolution: signs of the input with scaled signs of the filters.

    Constructor, attributes, initialisation and state-dict keys are those of ``torch.nn.Conv2d``;
    the filters are real numbers whose signs are taken anew in every forward pass. See
    :func:`adderize.functional.binary_conv2d` for the mathematics and the gradients.

    An input that is all positive, as behind a ReLU, has no signs to speak of. XNOR-Net therefore
    normalises right before the signs: norm, sign, convolution.

    Attributes:
        norm: an optional normalisation layer applied to the input, as a batch of one where it is a
            single image; None by default, a ``BatchNorm2d`` where
            ``binarize(model, norm="insert")`` put one.

    Shape:
        (N, Cin, H, W) or (Cin, H, W) -> (N, Cout, OH, OW) or (Cout, OH, OW).
    """

    def forward(self, input: Tensor) -> Tensor:
        if scripted.is_scripting():
            if self.norm is not None:
                input = self.norm(as_batch(input)).view_as(input)
            return scripted.binary_conv2d(
                input,
                self.weight,
                self.bias,
                self.stride,
                self._scripted_pads(input),
                self.dilation,
                self.groups,
                self._scripted_mode(),
            )
        if self.norm is not None:
            input = normed(self, self.norm, as_batch(input)).view_as(input)
        input, padding = self._padded(input)
        geometry = (self.stride, padding, self.dilation, self.groups)
        return binary_conv2d(input, self.weight, self.bias, *geometry)
