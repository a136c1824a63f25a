"""Layers with scales of signed powers of two: by hand, in every form, by both counters."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, count
from adderize.counting import COUNTERS, FlopCountAnalysis, OpBudget
from adderize.counting.costs import ENERGY, LATENCY
from adderize.formulas import Operations, convolution, matmul, scale_and_shift, shift_add
from adderize.layers import (
    ShiftAddAdaptiveAvgPool2d,
    ShiftAddAvgPool2d,
    ShiftAddConv2d,
    ShiftAddLeakyReLU,
    ShiftAddLinear,
    ShiftAddMean,
    ShiftAddNorm2d,
    ShiftAddScale,
)

# Layer, input size, expected: T shifts and T - 1 additions for each product.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], Operations]] = {
    "norm": (
        ShiftAddNorm2d(torch.rand(3), torch.rand(3), terms=3),
        (3, 4, 4),
        Operations(additions=2 * 48 + 48, shifts=3 * 48),
    ),
    "convolution": (
        ShiftAddConv2d(nn.Conv2d(4, 6, 3), terms=2),
        (4, 5, 5),
        Operations(additions=1944 + 1944 + 54, shifts=2 * 1944),
    ),
    "linear": (
        ShiftAddLinear(torch.rand(5, 7), terms=1),
        (7,),
        Operations(additions=35, shifts=35),
    ),
    "scale": (ShiftAddScale(torch.rand(1), terms=2), (5,), Operations(additions=5, shifts=10)),
    "leaky ReLU": (
        ShiftAddLeakyReLU(torch.rand(1), terms=3),
        (2, 5),
        Operations(additions=20, shifts=30, comparisons=10),
    ),
    "mean": (ShiftAddMean((2, 3), terms=3), (2, 3, 3), Operations(additions=18 + 4, shifts=6)),
    "pool": (ShiftAddAvgPool2d(2, terms=2), (3, 4, 4), Operations(additions=48 + 12, shifts=24)),
    "global pool": (
        ShiftAddAdaptiveAvgPool2d(1, terms=3),
        (3, 4, 4),
        Operations(additions=48 + 6, shifts=9),
    ),
}


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_hand(name: str, counter: str) -> None:
    layer, size, expected = LAYERS[name]
    budget = count(nn.Sequential(layer), size, counter=counter)
    assert budget.after == expected and not budget.uncounted
    products = expected.shifts // layer.terms
    assert budget.before.multiplications == products and budget.before.shifts == 0


def test_formulas() -> None:
    shapes = (1, 4, 5, 5), (6, 4, 3, 3), (1, 6, 3, 3)
    assert shift_add(convolution(*shapes, bias=True), 2) == LAYERS["convolution"][2]
    assert shift_add(scale_and_shift((1, 3, 4, 4)), 3) == LAYERS["norm"][2]
    assert shift_add(matmul((1, 7), (1, 5)), 1) == LAYERS["linear"][2]
    total = 2 * Operations(shifts=3) + Operations(shifts=1, comparisons=4)
    assert total == Operations(shifts=7, comparisons=4) and total.flops == 0


class Network(nn.Module):
    """8x8 image: a stem of shifts, an adder with a norm of shifts, a classifier of shifts."""

    input_size = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = ShiftAddConv2d(nn.Conv2d(1, 2, 3, bias=False))
        self.adder = AdderConv2d(2, 4, 3, bias=False)
        self.norm = ShiftAddNorm2d(torch.rand(4), torch.rand(4))
        self.head = ShiftAddLinear(torch.rand(10, 64), torch.rand(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.adder(self.stem(x))).flatten(1))


@pytest.fixture(scope="module")
def budget() -> OpBudget:
    return count(Network().eval())


STEM, PAIRS, OUTPUTS, HEAD = 2 * 36 * 9, 4 * 16 * 18, 64, 640


def test_a_network_without_products(budget: OpBudget) -> None:
    additions = 2 * STEM + 2 * PAIRS + 3 * OUTPUTS + 2 * HEAD + 10
    assert budget.after == Operations(0, additions, shifts=2 * STEM + 3 * OUTPUTS + 2 * HEAD)
    products = STEM + PAIRS + OUTPUTS + HEAD
    assert budget.before == Operations(products, products + 10)
    kinds = [layer.kind for layer in budget.layers]
    assert kinds == ["convolution", "adder", "norm", "linear"]
    analysis = FlopCountAnalysis(Network().eval(), torch.zeros(1, 1, 8, 8))
    assert analysis.operations() == budget.after
    assert analysis.by_operator("stem") == {"additions": 2 * STEM, "shifts": 2 * STEM}


def test_every_form_shows_them(budget: OpBudget, tmp_path: Path) -> None:
    shifts = budget.after.shifts
    assert "shift after" in str(budget) and "shift after" in budget.to_markdown()
    assert json.loads(budget.to_json())["after"]["shifts"] == shifts
    total = list(csv.DictReader(budget.to_csv().splitlines()))[-1]
    assert (total["after.shifts"], total["before.shifts"]) == (str(shifts), "0")
    names = [layer.name for layer in budget.select(sort="shifts").layers]
    assert names == ["stem", "head", "norm", "adder"]
    pytest.importorskip("matplotlib")
    budget.plot(tmp_path / "plot.svg")
    count(nn.Conv2d(1, 4, 3), (1, 8, 8)).plot(tmp_path / "without.svg")
    drawings = [(tmp_path / f"{name}.svg").read_text() for name in ("plot", "without")]
    assert "#55a868" in drawings[0] and "#55a868" not in drawings[1]


def test_networks_without_shifts_do_not_mention_them() -> None:
    plain = count(nn.Conv2d(1, 4, 3), (1, 8, 8))
    for text in (str(plain), plain.to_markdown()):
        assert "shift" not in text.lower()


def test_prices_have_sources(budget: OpBudget) -> None:
    one = Operations(shifts=1)
    prices = {name: table.cost(one) * 1e12 for name, table in ENERGY.items()}
    assert prices == pytest.approx(
        {"float32": 0.13, "float16": 0.057, "int32": 0.13, "int8": 0.024}
    )
    assert LATENCY["via-nano-2000"].cost(one) == 1
    assert "energy of shifts: H. You et al., ShiftAddLLM" in str(budget)
    assert "latency of shifts: A. Fog" in budget.to_markdown()
    content = json.loads(budget.to_json())
    assert "a shift of 32 bits" in content["energy"]["source_of_shifts"]
    assert ENERGY["int32"].unpriced(budget.after) == []
