"""timm's norms with activations inside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from adderize import load_model, save_model
from adderize.quantize import quantize
from tests.quantize.networks import X, conv, relative_error, trained


@pytest.mark.parametrize("traceable", [True, False])
def test_norms_with_activations(traceable, tmp_path):
    """timm's BatchNormAct2d, which tracing splits, and which stays whole where tracing fails."""
    from timm.layers import BatchNormAct2d

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = conv(3, 8), BatchNormAct2d(8), conv(8, 8)
            self.last = BatchNormAct2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.b(self.norm(self.a(x))))
            return y if traceable or bool(x.sum() > -1e9) else x

    model = trained(Network(), tuple(X.shape), stem=True, head=True)
    quantized = quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule) == traceable
    assert relative_error(quantized(X), model(X)) < 0.1
    save_model(quantized, tmp_path)
    assert torch.equal(load_model(Network(), tmp_path)(X), quantized(X))
