"""Operations of integer networks: LeNet-5-BN by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from adderize import AdderizeError, adderize, count, recalibrate
from adderize.counting import FlopCountAnalysis
from adderize.formulas import Operations
from adderize.inspection import inspect
from adderize.integer import IntegerNetwork, integer_report, multiplication_free, to_integer
from adderize.models import lenet5_bn, resnet20
from adderize.quantize import quantize


def lowered(model: nn.Module, size: tuple[int, ...], terms: int, filters: int) -> IntegerNetwork:
    x = torch.randn(4, *size)
    quantized = quantize(recalibrate(model, [x]).eval(), [x])
    statistics = {"mean": (0.1,) * size[0], "std": (0.3,) * size[0]}
    return to_integer(quantized, input_size=size, terms=terms, filter_terms=filters, **statistics)


# LeNet-5-BN's outputs of a layer, and the taps of each.
SIZES = {
    "conv1": (6 * 28 * 28, 25), "conv2": (16 * 10 * 10, 6 * 25), "fc1": (120, 400),
    "fc2": (84, 120), "fc3": (10, 84),
}  # fmt: skip
POOLS = {"max_pool2d": 6 * 14 * 14, "max_pool2d_1": 16 * 5 * 5}


def epilogue(outputs: int, terms: int) -> Operations:
    """A shift a term, the sum with the bias, the fraction's shift, two bounds."""
    return Operations(0, terms * outputs, shifts=(terms + 1) * outputs, comparisons=2 * outputs)


def test_five_adders_by_hand() -> None:
    model = adderize(lenet5_bn(), stem=True, linear=True, head=True)
    budget = count(lowered(model, (1, 32, 32), terms=3, filters=2))
    expected = {"quantize_bytes": epilogue(1024, 3)}
    for name, (outputs, taps) in SIZES.items():
        expected[name] = Operations(additions=2 * outputs * taps) + epilogue(outputs, 3)
    expected |= {name: Operations(comparisons=3 * outputs) for name, outputs in POOLS.items()}
    assert {layer.name: layer.after for layer in budget.layers} == expected
    assert budget.after == sum(expected.values(), Operations())
    pairs = sum(outputs * taps for outputs, taps in SIZES.values())
    scaled = 1024 + sum(outputs for outputs, _ in SIZES.values())
    assert budget.before.multiplications == budget.before.additions == pairs + scaled
    assert budget.before.shifts == budget.after.multiplications == 0
    assert json.loads(budget.to_json())["energy"]["table"] == "Horowitz 45 nm int32"


def test_kept_layers_by_hand() -> None:
    budget = count(lowered(adderize(lenet5_bn(), linear=True), (1, 32, 32), terms=3, filters=2))
    found = {layer.name: layer.after for layer in budget.layers}
    outputs, taps = SIZES["conv1"]
    products = outputs * taps
    assert found["conv1"] == Operations(0, 2 * products + outputs, shifts=2 * products)
    assert found["quantize_bytes"] == epilogue(outputs, 3)
    products = 10 * 84
    assert found["fc3"] == Operations(0, 2 * products + 10, shifts=2 * products)
    kinds = {layer.name: layer.kind for layer in budget.layers}
    assert (kinds["conv1"], kinds["conv2"], kinds["fc3"]) == ("convolution", "adder", "linear")


def test_a_residual_sum_by_hand() -> None:
    network = lowered(adderize(resnet20()), (3, 32, 32), terms=2, filters=1)
    found = {layer.name: layer for layer in count(network, (3, 32, 32)).layers}
    outputs = 16 * 32 * 32
    pairs = Operations(additions=2 * outputs * 144)
    added = Operations(additions=2 * outputs, shifts=2 * outputs)
    assert found["layer1.0.conv2"].after == pairs + epilogue(outputs, 2) + added
    assert found["layer1.0.conv2"].before.multiplications == outputs * (144 + 2)
    assert found["adaptive_avg_pool2d"].after == Operations(additions=64 * 64)


def test_an_integer_network_is_counted_as_it_is() -> None:
    network = lowered(adderize(lenet5_bn()), (1, 32, 32), 3, 3)
    with pytest.raises(AdderizeError, match=r"made for one, here \(1, 32, 32\)"):
        count(network, (1, 28, 28))
    for options in ({"stem": True}, {"counter": "fvcore"}):
        with pytest.raises(AdderizeError, match="counted as it is"):
            count(network, **options)  # type: ignore[arg-type]
    with pytest.raises(AdderizeError, match="not part of another network"):
        count(nn.Sequential(network), (1, 32, 32))
    with pytest.raises(AdderizeError, match="not those of an IntegerNetwork"):
        FlopCountAnalysis(network, torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


def test_the_report_has_the_same_operations_and_the_memory() -> None:
    network = lowered(adderize(lenet5_bn(), stem=True, linear=True), (1, 32, 32), 3, 2)
    report = integer_report(network)
    assert report.operations == count(network).after
    assert report.operations.multiplications == 0
    # The first layer's bytes, in and out: 6x28x28 and 6x14x14.
    assert report.activation_bytes == 6 * 28 * 28 + 6 * 14 * 14
    conv2 = next(row for row in report.layers if row.layer == "conv2")
    assert conv2.tensor_bytes == 16 * 150 + 2 * 3 * 16 + 4 * 16
    assert (conv2.terms, conv2.dtype, conv2.output) == (3, "uint8", (16, 10, 10))
    assert report.tensor_bytes == sum(row.tensor_bytes for row in report.layers)
    assert "0 multiplications" in str(report) and "| conv2 |" in report.to_markdown()
    assert json.loads(report.to_json())["layers"][-1]["terms"] == 2
    assert report.to_csv().splitlines()[0].startswith("layer,kind,output,dtype,terms,fraction")


def test_inspections_point_to_the_reports() -> None:
    model = adderize(lenet5_bn())
    free = multiplication_free(recalibrate(model, [torch.randn(2, 1, 32, 32)]).eval())
    for network in (free, lowered(adderize(lenet5_bn()), (1, 32, 32), 3, 3)):
        with pytest.raises(AdderizeError, match=r"integer_report\(\)"):
            inspect(network)
