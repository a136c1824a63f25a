"""torch's fusion of a convolution with the norm behind it, which is wrong for other layers."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from adderize.errors import AdderizeError

_FUSIONS = (fuse_conv_bn_eval.__code__, fuse_linear_bn_eval.__code__)


class NotFusible(nn.Module):
    """A layer that torch's fusion with a batch norm does not take for a convolution.

    The fusion reads nothing but attributes, and would scale the filters as a convolution's; but it
    begins with a copy of the layer.
    """

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        caller = sys._getframe(1).f_back  # who called copy.deepcopy
        if caller is not None and caller.f_code in _FUSIONS:
            raise AdderizeError(
                f"{caller.f_code.co_name} got a {type(self).__name__}: a norm after it cannot "
                "become a part of its filters; keep both, or use adderize.quantize"
            )
        return super().__reduce_ex__(protocol)
