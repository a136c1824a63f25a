"""The report's contents against what count, plan, inspect and quantize say, and its page."""

from __future__ import annotations

import copy
import html
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdderizeError, adderize, binarize, count, plan
from adderize.data.normalisation import MNIST
from adderize.inspection import inspect
from adderize.integer import integer_report, multiplication_free, shift_report, to_integer
from adderize.models import lenet5_bn, resnet20
from adderize.quantize import quantize, quantize_report
from adderize.reporting import report
from adderize.reporting.page import facts
from tests.reporting.networks import HOSTILE, Hostile, images, settled_lenet

LEFT_OPEN = {"meta", "link", "wbr"}


class Page(HTMLParser):
    """Tables as texts, sort values beside them, ids, links, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.values: list[list[list[str | None]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in LEFT_OPEN:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.values.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.values[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.values[-1][-1].append(dict(attributes).get("data-value"))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def rows(self, title: str) -> list[dict[str, tuple[str, float | None]]]:
        """The table that has a column of that title."""
        (index,) = [i for i, table in enumerate(self.tables) if title in table[0]]
        head, *rows = self.tables[index]
        _, *values = self.values[index]
        return [
            {
                name: (text, value and float(value))
                for name, text, value in zip(head, *both, strict=True)
            }
            for both in zip(rows, values, strict=True)
        ]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return settled_lenet()


@pytest.fixture(scope="module")
def text(model: nn.Module) -> str:
    return report(model, images(), name="LeNet").to_html()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_operations_are_those_of_count(page: Page, model: nn.Module) -> None:
    budget = count(model, (1, 32, 32))
    totals = {row["for one example"][0]: row for row in page.rows("after / before")}
    for kind in ("multiplications", "additions", "comparisons"):
        assert totals[kind]["before"][1] == getattr(budget.before, kind)
        assert totals[kind]["after"][1] == getattr(budget.after, kind)
    assert totals["energy"]["after"][1] == budget.energy["float32"].cost(budget.after)
    assert totals["latency"]["before"][1] == budget.latency.cost(budget.before)
    rows = page.rows("mul before")
    assert [row["layer"][0] for row in rows] == [
        layer.name or "(model)" for layer in budget.layers if layer.arithmetic
    ]
    for title, total in (("mul after", budget.after.multiplications),
                         ("add before", budget.before.additions)):  # fmt: skip
        assert sum(row[title][1] or 0 for row in rows) == total
    assert sum(row["parameters"][1] or 0 for row in rows) == sum(
        p.numel() for p in model.parameters()
    )


def test_layers_norms_and_plan_are_those_of_inspect_and_plan(page: Page, model: nn.Module) -> None:
    found = inspect(model, images())
    rows = {row["layer"][0]: row for row in page.rows("outside")}
    norms = {row["layer"][0]: row for row in page.rows("variance ratio")}
    assert list(rows) == list(norms) == [layer.name for layer in found.layers]
    for layer in found.layers:
        assert layer.inputs is not None and layer.norm is not None
        assert rows[layer.name]["outside"] == (f"{layer.outside:.1%}", layer.outside)
        assert rows[layer.name]["input max"][1] == layer.inputs.max
        assert rows[layer.name]["filter min"][1] == layer.filters.min
        assert rows[layer.name]["output std"][1] == layer.output_std
        assert norms[layer.name]["norm"][0] == layer.norm.name
        assert norms[layer.name]["mean shift"][1] == layer.norm.mean_shift
    planned = [[row[key][0] for key in ("layer", "decision", "why")] for row in page.rows("why")]
    assert planned == [[row.name, row.decision.value, row.reason] for row in plan(model).rows]


def test_errors_in_8_bits_are_those_of_quantize(page: Page, model: nn.Module) -> None:
    expected = quantize_report(quantize(model, images().split(32))).layers
    rows = page.rows("clamped")
    assert [row["layer"][0] for row in rows] == [layer.layer for layer in expected]
    for row, layer in zip(rows, expected, strict=True):
        assert row["error"][1] == pytest.approx(layer.error)
        assert row["clamped"] == (f"{layer.clamped:.1%}", layer.clamped)


def test_the_page_needs_nothing_else(page: Page, text: str) -> None:
    assert "://" not in text and "@import" not in text and "xmlns" not in text
    for _, name, value in page.attributes:
        assert name not in ("src", "srcset", "data", "action") or value is None
        if name in ("href", "xlink:href"):
            assert value is not None and value.startswith(("#", "data:,"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href" and value is not None and value.startswith("#"):
            assert value[1:] in ids
        if name == "clip-path":
            assert value is not None and value.removeprefix("url(#").removesuffix(")") in ids
    assert sum(tag == "svg" for tag, name, _ in page.attributes if name == "viewbox") == 9


def test_hostile_names_stay_texts() -> None:
    torch.manual_seed(0)
    text = report(Hostile(), torch.randn(20, 3, 8, 8), name=f"a {HOSTILE}").to_html()
    page = Page(text)
    assert text.count("<script") == 1 and "<b>" not in text
    assert HOSTILE in {row["layer"][0] for row in page.rows("why")}
    assert any(HOSTILE in written for written in page.texts if written.startswith("a "))
    # In the figures too, cut off at its front; no part of it is set as a formula.
    assert f"…{HOSTILE[-33:]}" in [written.strip() for written in page.texts]


def test_findings_say_what_to_do() -> None:
    torch.manual_seed(0)
    bare = adderize(lenet5_bn(), stem=True, linear=True, norm="ignore")
    found = report(bare, images())
    kinds = {finding.kind: finding for finding in inspect(bare, images()).findings}
    assert [notice.title for notice in found.notices] == list(kinds)
    assert [notice.advice for notice in found.notices] == [f.advice for f in kinds.values()]
    text = found.to_html()
    assert "missing norm" in text and "fc1, fc2" in text and "hardly learns" in text
    assert {row["outside"][0] for row in Page(text).rows("outside")} == {"-"}
    assert "% outside" not in text
    assert not found.is_settled and "of new norms" in found.absent["quantization"]


def test_saturated_layers_stand_out(model: nn.Module) -> None:
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.fc1.weight.mul_(1e4)
    found = report(loud, images())
    assert "saturated layer" in {notice.title for notice in found.notices}
    assert 'class="number share grave"' in found.to_html()


def test_a_network_that_is_not_converted_yet() -> None:
    found = report(lenet5_bn(), input_size=(1, 32, 32), stem=True)
    assert found.plan is not None and found.plan.converted == ["conv1", "conv2"]
    assert found.inspection is not None
    assert [row.kind for row in found.inspection.layers][:2] == ["AdderConv2d"] * 2
    budget = count(lenet5_bn(), (1, 32, 32), stem=True)
    assert (found.budget.before, found.budget.after) == (budget.before, budget.after)
    text = found.to_html()
    assert "without images" in text and "none were given" in text
    assert found.size.parameters == sum(p.numel() for p in lenet5_bn().parameters())
    (size,) = [fact for fact in facts(found) if fact.title == "parameters"]
    assert size.more == f"{found.size.bytes / 1000:.4g} kB with buffers"


def test_a_quantized_network(model: nn.Module) -> None:
    eight_bit = quantize(model, [images()])
    found = report(eight_bit, images(), name="8 bits")
    assert found.quantization == quantize_report(eight_bit)
    assert set(found.absent) == {"plan", "layers"} and found.inspection is None
    assert found.size.bytes < report(model, input_size=(1, 32, 32)).size.bytes / 2
    text = found.to_html()
    assert "which has the plan" in text
    # Bytes and packed filters are no parameters.
    assert "parameters" not in [fact.title for fact in facts(found)]
    assert "parameters" not in Page(text).rows("mul before")[0]


def test_networks_of_shifts(model: nn.Module) -> None:
    free = multiplication_free(model)
    found = report(free, images())
    assert found.budget.after.multiplications == 0 < found.budget.after.shifts
    assert set(found.absent) == {"plan", "layers", "quantization"} and found.notices == ()
    text = found.to_html()
    assert "shift after" in text and html.escape(str(shift_report(free)).splitlines()[0]) in text
    integers = to_integer(quantize(model, [images()]), mean=MNIST.mean, std=MNIST.std)
    found = report(integers, input_size=(1, 32, 32))
    assert found.budget.after.multiplications == 0 and "Shifts" in found.to_html()
    (memory,) = [fact.text for fact in facts(found) if fact.title == "memory"]
    assert memory == f"{integer_report(integers).tensor_bytes / 1000:.4g} kB"


def test_the_model_is_left_alone() -> None:
    model = lenet5_bn().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report(model, images(), stem=True).to_html()
    assert type(model.conv1) is nn.Conv2d and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wrong_inputs(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(AdderizeError, match="Module"):
        report("resnet18")  # type: ignore[arg-type]
    with pytest.raises(AdderizeError, match="nothing"):
        report(lenet5_bn(), input_size=(1, 32, 32), include="nothing*")
    with pytest.raises(AdderizeError, match=r"\(3, 32, 32\) cannot be traced"):
        report(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(AdderizeError, match="cannot write"):
        report(model, input_size=(1, 32, 32)).save(tmp_path)


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_packages(missing: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(model, input_size=(1, 32, 32))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(AdderizeError, match=rf"{missing}.*adderize\[report\]"):
        found.to_html()


@pytest.mark.parametrize(
    ("convert", "told"),
    [(adderize, "6 adders, 16 kept"), (binarize, "0 adders, 6 binary, 16 kept")],
)
def test_a_network_that_is_converted_in_part_stays_as_it_is(convert: Any, told: str) -> None:
    """The page's figures are all of the network as it is, not of what a plan would add."""
    found = report(convert(resnet20(), include="layer1.*"), input_size=(3, 32, 32))
    assert found.plan is not None and len(found.plan.converted) == 14
    assert found.inspection is not None
    kinds = {row.name: row.kind for row in found.inspection.layers}
    assert kinds["layer2.0.conv1"] == "Conv2d" != kinds["layer1.0.conv1"]
    assert [fact.text for fact in facts(found) if fact.title == "layers"] == [told]
