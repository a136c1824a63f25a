"""A budget's forms: tables, JSON, CSV, Markdown, the plot."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from torch import nn
from torchvision import models

from adderize import AdderizeError, binarize, count
from adderize.counting import OpBudget
from adderize.counting.plot import in_rows
from tests.golden import check_golden


@pytest.fixture(scope="module")
def budget() -> OpBudget:
    return count(models.resnet18(), (3, 224, 224))


def test_golden_tables(budget: OpBudget) -> None:
    check_golden("resnet18.txt", str(budget))
    check_golden("resnet18-depth1.md", budget.select(depth=1).to_markdown())
    check_golden("resnet18-depth1.csv", budget.select(depth=1).to_csv())
    check_golden("resnet18-depth1.json", budget.select(depth=1).to_json())


def test_json_keys(budget: OpBudget) -> None:
    content = json.loads(budget.to_json())
    keys = {
        "multiplications", "additions", "shifts", "xnors", "comparisons", "other",
        "energy_joule", "latency_cycles",
    }  # fmt: skip
    assert set(content["before"]) == set(content["after"]) == keys
    assert isinstance(content["layers"], list) and content["uncounted"] == []
    assert content["input_size"] == [3, 224, 224]
    for view in ("before", "after"):
        for key in keys:
            parts = sum(layer[view][key] for layer in content["layers"])
            assert parts == pytest.approx(content[view][key])
    assert content["before"]["energy_joule"] == pytest.approx(
        3.7e-12 * content["before"]["multiplications"] + 0.9e-12 * content["before"]["additions"]
    )


def test_a_network_that_computes_nothing() -> None:
    content = count(nn.Identity(), (3,)).to_dict()
    assert content["after"]["energy_joule"] == 0 and not content["layers"]
    assert content["energy"]["table"] == "Horowitz 45 nm float32"


def test_csv_lines(budget: OpBudget) -> None:
    rows = list(csv.DictReader(io.StringIO(budget.to_csv())))
    assert rows[-1]["layer"] == "(network)"
    for key in ("before.multiplications", "after.additions"):
        assert sum(int(row[key]) for row in rows[:-1]) == int(rows[-1][key])


def test_selection(budget: OpBudget) -> None:
    adders = budget.select(only="adder", sort="before.multiplications")
    assert {layer.kind for layer in adders.layers} == {"adder"} and len(adders.layers) == 19
    counts = [layer.before.multiplications for layer in adders.layers]
    assert counts == sorted(counts, reverse=True)
    assert adders.after == budget.after and "(these rows)" in str(adders)
    assert [layer.name for layer in budget.select(depth=1).layers][:3] == ["conv1", "bn1", "relu"]
    for wrong in ({"only": "adders"}, {"sort": "speed"}, {"sort": "x.additions"}, {"depth": 0}):
        with pytest.raises(AdderizeError):
            budget.select(**wrong)


def test_plot(budget: OpBudget, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    budget.plot(tmp_path / "plot.svg")
    drawing = (tmp_path / "plot.svg").read_text()
    assert drawing.count("clip-path") > 12
    for name in ("plot.docx", "plot"):
        with pytest.raises(AdderizeError, match=r"suffix names no format; expected one of .*\.png"):
            budget.plot(tmp_path / name)
    with pytest.raises(AdderizeError, match="cannot write to"):
        budget.plot(tmp_path / "missing" / "plot.png")


def test_a_plot_that_fails_leaves_the_old_one(
    budget: OpBudget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    file = tmp_path / "plot.svg"
    file.write_text("old")

    def interrupted(self: object, path: Path, **options: object) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figure.Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        budget.plot(file)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plot.svg", "old")]


def test_plot_of_binary_layers_and_long_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = "x" * 80 + "$\\frac$ \n_end"
    layers = nn.Sequential(OrderedDict([("stem", nn.Conv2d(3, 4, 3)), (name, nn.Conv2d(4, 4, 3))]))
    binary = binarize(layers, head=True, norm="ignore")
    count(binary, (3, 8, 8)).plot(tmp_path / "plot.svg")
    drawing = (tmp_path / "plot.svg").read_text()
    assert "xnors" in drawing and r"$\frac$ \n_end" in drawing and "x" * 34 not in drawing


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [("", ["12"]), ("ab", ["ab12"]), ("abc", ["abc", "12"]), ("abcd", ["abcd", "12"])],
)
def test_legends_have_kinds_and_views_in_rows(kinds: str, rows: list[str]) -> None:
    """As matplotlib fills columns: one more entry in each of the first ones."""
    entries, columns = in_rows(kinds, "12")
    least, more = divmod(len(entries), columns)
    filled = [[entries.pop(0) for _ in range(least + (i < more))] for i in range(columns)]
    depth = max(map(len, filled))
    assert ["".join(c[i] for c in filled if len(c) > i) for i in range(depth)] == rows


def test_plot_without_matplotlib(
    budget: OpBudget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AdderizeError, match=r"adderize\[plot\]"):
        budget.plot(tmp_path / "plot.png")
