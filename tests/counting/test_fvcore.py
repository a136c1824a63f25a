"""fvcore's analysis of adder networks: its own, and the one that tells operations apart."""

from __future__ import annotations

import logging

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, flop_count_str, flop_count_table
from fvcore.nn import FlopCountAnalysis as Fvcore
from torch import Tensor, nn
from torchvision import models

from adderize import AdderConv2d, AdderizeError, adderize, binarize, count
from adderize.counting import COUNTERS, FlopCountAnalysis
from adderize.formulas import FREE, KINDS, Operations
from adderize.quantize import quantize
from tests import fresh

IMAGE = torch.zeros(1, 3, 64, 64)
RESNET18 = 148_965_376  # fvcore's total for a convolutional one on 3x64x64


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return adderize(models.resnet18(), init="keep").eval()


@pytest.fixture(scope="module")
def analysis(resnet: nn.Module) -> FlopCountAnalysis:
    return FlopCountAnalysis(resnet, IMAGE)


def test_fvcore_itself_counts_a_pair_as_one_operation(resnet: nn.Module) -> None:
    assert Fvcore(models.resnet18().eval(), IMAGE).total() == RESNET18
    found = Fvcore(resnet, IMAGE)
    assert found.total() == RESNET18
    assert found.by_operator()["adder_conv2d"] == 138_412_032
    assert not [name for name in found.unsupported_ops() if name.startswith("adderize::")]


@pytest.mark.parametrize("linear", [False, True])
def test_fvcore_itself_counts_other_layers(linear: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip
    adders = adderize(network, head=True, linear=linear, inplace=False).eval()
    image, pairs = torch.randn(1, 3, 8, 8), 6 * 16 * 36
    expected = pairs + linear * 480
    assert Fvcore(adders, image).by_operator()["adder_conv2d"] == expected
    acts = ActivationCountAnalysis(adders, image)
    assert acts.by_operator()["adder_conv2d"] == 6 * 16 + linear * 5
    integers = quantize(adders, [torch.randn(8, 3, 8, 8)])
    assert Fvcore(integers, image).by_operator()["adder_conv2d_u8_packed"] == expected
    binary = binarize(network, head=True, inplace=False).eval()
    assert Fvcore(binary, image).by_operator()["binary_conv2d"] == pairs


@pytest.mark.parametrize(
    "imports",
    [
        "import adderize.counting; from fvcore.nn import FlopCountAnalysis",
        "from adderize import AdderConv2d; from fvcore.nn import FlopCountAnalysis; "
        "import adderize.counting",
    ],
)
def test_every_order_of_imports(imports: str) -> None:
    code = (
        f"{imports}; import torch; from adderize import AdderConv2d\n"
        "layer = AdderConv2d(1, 1, 2, bias=False)\n"
        "assert FlopCountAnalysis(layer, torch.ones(1, 1, 3, 3)).total() == 16"
    )
    result = fresh.run(code)
    assert result.returncode == 0, result.stderr
    if imports.startswith("import adderize.counting"):
        assert result.stderr == ""


def test_kinds_of_operations(resnet: nn.Module, analysis: FlopCountAnalysis) -> None:
    budget = count(resnet, (3, 64, 64))
    assert analysis.operations() == budget.after
    assert analysis.total() == sum(budget.after.by_kind().values())
    assert analysis.operations("layer1.0.conv1") == Operations(additions=2 * 256 * 9 * 64 * 64)
    layers = {layer.name: layer.after for layer in budget.select(depth=1).layers}
    assert {name: analysis.operations(name) for name in layers} == layers
    before = FlopCountAnalysis(resnet, IMAGE, view="before")
    assert before.operations() == budget.before
    assert before.operations() == FlopCountAnalysis(models.resnet18().eval(), IMAGE).operations()


def test_before_leaves_out_the_norms_that_adders_own() -> None:
    model = adderize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), stem=True, head=True).eval()
    assert isinstance(model[0].norm, nn.BatchNorm2d)
    image, outputs, pairs = torch.zeros(1, 3, 5, 5), 4 * 9, 4 * 9 * 27
    before = FlopCountAnalysis(model, image, view="before")
    assert before.operations() == Operations(pairs, pairs + outputs, comparisons=outputs)
    after = FlopCountAnalysis(model, image)
    assert after.operations("0.norm") == Operations(outputs, outputs)
    assert before.operations("0.norm") == FREE


def test_tables_of_fvcore(resnet: nn.Module, analysis: FlopCountAnalysis) -> None:
    table = flop_count_table(analysis, max_depth=1)
    assert "| layer1   | 0.148M                 | 75.727M  |" in table
    only = FlopCountAnalysis(resnet, IMAGE, kinds=["multiplications"])
    assert set(only.by_operator()) == {"multiplications"}
    assert only.total() == count(resnet, (3, 64, 64)).after.multiplications
    text = flop_count_str(only)
    assert "(conv1): AdderConv2d(\n        64, 64" in text and "#flops: 10.35M" in text
    with_activations = flop_count_table(analysis, 1, ActivationCountAnalysis(resnet, IMAGE))
    assert "| layer1   | 0.148M                 | 75.727M  | 65.536K" in with_activations


class Odd(nn.Module):
    """An operator without a formula, a known one with arguments that have none, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.adder = AdderConv2d(1, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1] / 2 + 1
        y = torch.special.i1(self.adder(self.inner(x)))
        return y * side + torch.linalg.vector_norm(x, 1)


def test_what_has_no_formula_is_listed(caplog: pytest.LogCaptureFixture) -> None:
    model = Odd().eval()
    analysis = FlopCountAnalysis(model, torch.ones(1, 1, 4, 4))
    with caplog.at_level(logging.WARNING):
        counted = analysis.operations()
    assert counted == Operations(multiplications=16, additions=32 + 16)
    assert dict(analysis.unsupported_ops()) == {
        "aten::special_i1": 1, "aten::linalg_vector_norm": 1
    }  # fmt: skip
    assert not analysis.unsupported_ops("adder")
    assert "aten::linalg_vector_norm encountered 1 time" in caplog.text
    budgets = [count(model, (1, 4, 4), counter=counter) for counter in ("meta", "fvcore")]
    assert budgets[0] == budgets[1]
    assert [item.operator for item in budgets[0].uncounted] == [
        "aten::special_i1", "aten::linalg_vector_norm"
    ]  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        sequence: Tensor = self.lstm(x)[0]
        return sequence


def test_recurrent_layers_are_one_operator_to_fvcore() -> None:
    budgets = {counter: count(Recurrent(), (5, 4), counter=counter) for counter in COUNTERS}
    # Four gates of 3 values, 4 inputs and 3 states, 5 steps; three products of gates a value.
    assert budgets["meta"].after.multiplications == 5 * (4 * 3 * (4 + 3) + 3 * 3)
    (missing,) = budgets["fvcore"].uncounted
    assert (missing.operator, missing.layer, missing.calls) == ("aten::lstm", "lstm", 1)


def test_handles_of_the_user() -> None:
    analysis = FlopCountAnalysis(Odd().eval(), torch.ones(1, 1, 4, 4))
    analysis.set_op_handle("aten::linalg_vector_norm", None, "aten::special_i1", lambda i, o: 7)
    assert analysis.by_operator()["special_i1"] == 7
    assert not analysis.unsupported_ops()
    assert analysis.operations() == Operations(multiplications=16, additions=32 + 16)


def test_copies_keep_their_settings(resnet: nn.Module) -> None:
    first = FlopCountAnalysis(resnet, IMAGE, view="before", kinds=["additions"])
    twin = first.unsupported_ops_warnings(False).copy(new_inputs=torch.zeros(1, 3, 32, 32))
    assert isinstance(twin, FlopCountAnalysis)
    assert twin.by_operator() == {"additions": count(resnet, (3, 32, 32)).before.additions}


def test_wrong_arguments(resnet: nn.Module) -> None:
    with pytest.raises(AdderizeError, match="view is 'during'; expected one of 'before', 'after'"):
        FlopCountAnalysis(resnet, IMAGE, view="during")
    for kinds in ("additions", ["additions", "flops"]):
        with pytest.raises(AdderizeError, match="expected some of multiplications, additions"):
            FlopCountAnalysis(resnet, IMAGE, kinds=kinds)
    with pytest.raises(AdderizeError, match="counter is 'torch'; expected one of 'meta', 'fvcore'"):
        count(resnet, (3, 64, 64), counter="torch")
    with pytest.raises(AdderizeError, match=r"an input of \(4, 64, 64\) cannot be traced"):
        count(resnet, (4, 64, 64), counter="fvcore")
    assert KINDS[:2] == ("multiplications", "additions")
