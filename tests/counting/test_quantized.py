"""Counts of quantized networks: the pairs of their adders, the epilogues, the grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import adderize, binarize, count
from adderize.counting import COUNTERS, Counter, FlopCountAnalysis
from adderize.counting.costs import ENERGY
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


@pytest.mark.parametrize("counter", COUNTERS)
def test_each_operation_costs_what_its_numbers_cost(counter: Counter) -> None:
    """Pairs of bytes as int8, stem, scales and the change to bytes as float32."""
    model = adderize(network(nn.Identity()), head=True).eval()
    integers = quantize(model, [torch.randn(16, 1, 8, 8)])
    budget = count(integers, (1, 8, 8), counter=counter)
    pairs = 4 * 9 * 18 + 4 * 9 * 4
    others = budget.after + Operations(additions=-2 * pairs)
    content = budget.to_dict()
    for view, of_pairs in (
        ("before", Operations(pairs, pairs)), ("after", Operations(additions=2 * pairs))
    ):  # fmt: skip
        expected = ENERGY["int8"].cost(of_pairs) + ENERGY["float32"].cost(others)
        assert content[view]["energy_joule"] == pytest.approx(expected)
        parts = sum(layer[view]["energy_joule"] for layer in content["layers"])
        assert parts == pytest.approx(expected)
    assert content["energy"]["table"] == "Horowitz 45 nm float32; Horowitz 45 nm int8"
    assert sum("energy: Horowitz" in line for line in str(budget).splitlines()) == 2
    given = count(integers, (1, 8, 8), counter=counter, energy="int8").to_dict()
    assert given["after"]["energy_joule"] == pytest.approx(ENERGY["int8"].cost(budget.after))
    assert given["energy"]["table"] == "Horowitz 45 nm int8"


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_priced_as_such(dtype: torch.dtype, counter: Counter) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))
    budget = count(model.to(dtype), (1, 8, 8), exclude="*", counter=counter)
    assert budget.energy_name() == "Horowitz 45 nm float16"


def test_bits_are_counted_in_integers() -> None:
    model = binarize(
        nn.Sequential(nn.Conv2d(1, 2, 1, bias=False)), stem=True, head=True, norm="ignore"
    )
    (layer,) = count(model, (1, 3, 3)).layers
    assert layer.by_dtype["int32"].after == Operations(additions=18, xnors=18)
    assert layer.by_dtype["float32"].before == Operations(18, 18)
    assert layer.by_dtype["float32"].after == Operations(18, comparisons=9)


def test_kept_layers_of_a_quantized_network_are_not_converted() -> None:
    model = adderize(network(nn.Conv2d(4, 3, 1)), exclude="5").eval()
    integers = quantize(model, [torch.randn(16, 1, 8, 8)])
    kinds = [layer.kind for layer in count(integers, (1, 8, 8)).layers]
    assert kinds.count("adder") == 1 and kinds.count("convolution") == 3
