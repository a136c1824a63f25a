"""Channels that norms take for constant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adderize import AdderConv2d, recalibrate
from adderize.quantize import prepare_qat, quantize
from tests.quantize.networks import X, conv, relative_error


@pytest.mark.parametrize("traceable", [True, False])
def test_norms_do_not_amplify_the_rounding_of_dead_channels(traceable):
    """Behind a dead channel a depthwise layer is constant; its norm has a gain of 1/sqrt(eps)."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = conv(3, 16), nn.BatchNorm2d(16)
            self.deep = AdderConv2d(16, 16, 3, padding=1, groups=16, bias=False)
            self.deep.norm = nn.BatchNorm2d(16)
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(F.relu6(self.deep(F.relu6(self.norm(self.stem(x))))))
            return y if traceable or bool(x.sum() > -1e9) else x

    torch.manual_seed(0)
    model = Network()
    model.norm.bias.data[:4] = -9
    model.deep.norm.bias.data.normal_(0.5, 0.5)
    recalibrate(model, [X]).eval()
    dead = model.deep.norm.running_var[:4]
    assert float(dead.max()) < 1e-9 and float(model.deep.norm.running_var[4:].min()) > 0.1
    quantized = quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule) == traceable
    layer = quantized.get_submodule("deep")
    assert layer.scale.count_nonzero() == 12
    assert relative_error(quantized(X), model(X)) < 0.03
    prepared = prepare_qat(model, [X]).eval()
    assert relative_error(prepared(X), model(X)) < 0.03
    assert relative_error(quantize(prepared, [X])(X), prepared(X)) < 0.01
    assert model.deep.norm.running_var[:4].equal(dead)
