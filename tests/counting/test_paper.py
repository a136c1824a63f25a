"""The paper's table: our counts, and every number in its explanations."""

from __future__ import annotations

import json
import re

import pytest
from torch import nn
from torchvision import models

from adderize import count
from adderize.counting import networks, paper
from adderize.formulas import Operations
from adderize.models import lenet5_bn, resnet20, vgg_small
from tests.golden import check_golden


@pytest.fixture(scope="module")
def entries() -> dict[tuple[str, str], paper.Entry]:
    return {(entry.network, entry.arithmetic): entry for entry in paper.paper_table()}


def test_paper_convention(entries: dict[tuple[str, str], paper.Entry]) -> None:
    pairs = {
        "LeNet-5-BN": 416_520,
        "VGG-small": 607_600_640,
        "ResNet-20": 40_813_184,
        "ResNet-32": 69_124_736,
        "ResNet-18": 1_814_073_344,
        "ResNet-50": 3_857_973_248,
    }
    for network, n in pairs.items():
        assert entries[network, "CNN"].convention == Operations(n, n)
        assert entries[network, "AdderNet"].convention == Operations(additions=2 * n)
        assert entries[network, "BNN"].convention == Operations(additions=n, xnors=n)
    agreeing = {network for (network, _), entry in entries.items() if entry.difference == 0}
    assert agreeing == {"ResNet-32", "ResNet-18", "ResNet-50"}
    # What the paper's zero leaves out.
    for (_, arithmetic), entry in entries.items():
        assert arithmetic != "AdderNet" or entry.full.multiplications > 0


def test_full_counts_are_those_of_count(entries: dict[tuple[str, str], paper.Entry]) -> None:
    budget = count(resnet20(), (3, 32, 32))
    assert entries["ResNet-20", "CNN"].full == budget.before
    assert entries["ResNet-20", "AdderNet"].full == budget.after
    kept = sum(
        layer.after.multiplications for layer in budget.layers if layer.kind == "convolution"
    )
    assert kept == 442_368 + 640
    assert entries["ResNet-20", "BNN"].full.xnors == 40_813_184 - kept


def test_reasons_add_up(entries: dict[tuple[str, str], paper.Entry]) -> None:
    """Every sum in a reason is right, and is the count."""
    for network in networks.NETWORKS:
        pairs = entries[network.name, "CNN"].convention.multiplications
        reason = re.sub(r" \([^)]*\)", "", network.reason).replace(",", "")
        sums = re.findall(r"((?:\d+ \+ )+\d+) = (\d+)", reason)
        for terms, total in sums:
            assert sum(map(int, terms.split(" + "))) == int(total) == pairs
        assert sums or str(pairs) in reason


def test_alternatives_named_in_the_reasons() -> None:
    def pairs(model: nn.Module, size: tuple[int, ...]) -> int:
        kinds = ("convolution", "linear", "adder")
        layers = count(model, size).layers
        return sum(layer.before.multiplications for layer in layers if layer.kind in kinds)

    reasons = {network.name: network.reason for network in networks.NETWORKS}
    assert f"{pairs(models.resnet50(), (3, 224, 224)):,}" in reasons["ResNet-50"]
    vgg = nn.Sequential(*vgg_small().features, nn.Flatten(), vgg_small().classifier)
    hidden = [nn.Linear(8192, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10)]
    assert f"{pairs(nn.Sequential(*vgg[:-1], *hidden), (3, 32, 32)):,}" in reasons["VGG-small"]
    seventh = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    deeper = nn.Sequential(*vgg[:-2], seventh, *vgg[-2:])
    assert f"{pairs(deeper, (3, 32, 32)):,}" in reasons["VGG-small"]
    lenet5 = count(lenet5_bn(), (1, 32, 32)).layers
    outputs = sum(layer.before.multiplications for layer in lenet5 if layer.kind == "norm")
    assert f"{416_520 + 3 * outputs:,}" in reasons["LeNet-5-BN"]
    budget = count(resnet20(), (3, 32, 32))
    norms = sum(layer.before.multiplications for layer in budget.layers if layer.kind == "norm")
    assert f"batch norms ({norms:,})" in reasons["ResNet-20"]
    others = sum(layer.before.additions for layer in budget.layers if layer.kind == "other")
    assert others == 86_016 + 4_096 and norms + others == 290_826


def test_paper_table_golden(entries: dict[tuple[str, str], paper.Entry]) -> None:
    rows = list(entries.values())
    check_golden("paper.txt", paper.text(rows))
    check_golden("paper.md", paper.text(rows, "md"))
    assert len(json.loads(paper.text(rows, "json"))) == 18
    assert len(paper.text(rows, "csv").splitlines()) == 19
