"""Cost tables: prices by hand, the user's own tables, wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adderize import AdderizeError
from adderize.counting.costs import ENERGY, LATENCY, CostTable, energy_tables, latency_table
from adderize.formulas import Operations

PAIRS = 416_520  # of LeNet-5-BN


def test_horowitz_prices() -> None:
    one = Operations(multiplications=1, additions=1)
    picojoules = {name: table.cost(one) * 1e12 for name, table in ENERGY.items()}
    assert picojoules == pytest.approx({"float32": 4.6, "float16": 1.5, "int32": 3.2, "int8": 0.23})
    assert all("arithmetic only" in table.source for table in ENERGY.values())


def test_lenet5_on_via_nano_as_the_paper_counts() -> None:
    table = latency_table(None)
    assert table is LATENCY["via-nano-2000"]
    cnn, adder = Operations(multiplications=PAIRS, additions=PAIRS), Operations(additions=2 * PAIRS)
    assert (table.cost(cnn), table.cost(adder)) == (2_499_120, 1_666_080)
    # The paper's own 435K and 870K, which it prints as 2.6M and 1.7M cycles.
    assert table.cost(Operations(435_000, 435_000)) == 2_610_000
    assert table.cost(Operations(additions=870_000)) == 1_740_000


def test_kinds_without_a_price_are_named() -> None:
    table = energy_tables(None)["float32"]
    assert table.unpriced(Operations(multiplications=1, comparisons=2, other=3)) == [
        "comparisons",
        "other",
    ]
    assert table.unpriced(Operations(additions=1)) == []


def test_a_table_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    path.write_text(json.dumps({"unit": "joule", "additions": 1e-13, "xnors": 0}))
    table = energy_tables(path)["float32"]
    assert (table.name, table.source) == ("chip", str(path))
    assert table.cost(Operations(multiplications=7, additions=10, xnors=9)) == pytest.approx(1e-12)
    assert energy_tables(str(path))["int8"] == table
    for given, one in ((table, table), ("int8", ENERGY["int8"])):
        assert all(priced is one for priced in energy_tables(given).values())


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ([1], "holds a list"),
        ({"unit": "joule"}, "prices for some of"),
        ({"unit": "watt", "additions": 1}, "unit 'watt'"),
        ({"additions": 1}, "unit None"),
        ({"unit": "cycles", "additions": 1}, "is in cycles; expected joule"),
        ({"unit": "joule", "adds": 1}, "prices 'adds'"),
        ({"unit": "joule", "additions": -1}, "a number, 0 or more"),
        ({"unit": "joule", "additions": True}, "a number, 0 or more"),
        ({"unit": "joule", "additions": "1 pJ"}, "a number, 0 or more"),
        ({"unit": "joule", "additions": float("nan")}, "a number, 0 or more"),
        ({"unit": "joule", "name": 3, "additions": 1}, "expected texts"),
    ],
)
def test_wrong_tables(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(AdderizeError, match=message):
        energy_tables(path)


def test_missing_table_names_the_known_ones() -> None:
    with pytest.raises(AdderizeError, match="expected float32, float16, int32, int8 or a JSON"):
        energy_tables("float8")
    with pytest.raises(AdderizeError, match="is in joule; expected cycles"):
        latency_table(CostTable("mine", "joule", "measured", {"additions": 1.0}))
