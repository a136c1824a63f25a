"""Counts of quantized networks: the pairs of their adders, the epilogues, the grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import adderize, count
from adderize.counting import COUNTERS, FlopCountAnalysis
from adderize.formulas import Operations
from adderize.quantize import quantize


def network(head: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        head,
    )


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_quantized_network_by_hand(counter: str) -> None:
    """8x8 image, 2x6x6 after the stem, 2x3x3 pooled, two adders of 4x3x3 outputs."""
    model = adderize(network(nn.Identity()), head=True).eval()
    integers = quantize(model, [torch.randn(16, 1, 8, 8)])
    budget = count(integers, (1, 8, 8), counter=counter)
    stem, pairs, outputs = 2 * 36 * 9, 4 * 9 * 18 + 4 * 9 * 4, 4 * 9
    to_bytes = 72
    # Scale and shift of both adders; the first one rounds and keeps within the bytes.
    expected = Operations(
        multiplications=stem + to_bytes + 2 * outputs,
        additions=stem + to_bytes + 2 * pairs + 2 * outputs,
        comparisons=2 * to_bytes + 3 * 18 + 2 * outputs,
        other=to_bytes + outputs,
    )
    assert budget.after == expected and not budget.uncounted
    assert budget.before == expected + Operations(pairs, -pairs)
    adders = [layer for layer in budget.layers if layer.kind == "adder"]
    assert sum(layer.before.multiplications for layer in adders) == pairs + 2 * outputs
    analysis = FlopCountAnalysis(integers, torch.zeros(1, 1, 8, 8), view="before")
    assert analysis.operations() == budget.before


def test_kept_layers_of_a_quantized_network_are_not_converted() -> None:
    model = adderize(network(nn.Conv2d(4, 3, 1)), exclude="5").eval()
    integers = quantize(model, [torch.randn(16, 1, 8, 8)])
    kinds = [layer.kind for layer in count(integers, (1, 8, 8)).layers]
    assert kinds.count("adder") == 1 and kinds.count("convolution") == 3
