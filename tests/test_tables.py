"""Tables in every form, read back by other parsers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tabulate import tabulate

from adderize.tables import (
    FORMATS,
    Report,
    Table,
    bullets,
    csv_text,
    json_text,
    lines_text,
    plain,
    shape_text,
    visible,
)

HEADER = ["layer", "kind", "mul"]
ROWS = [["conv1", "convolution", "118M"], ["", "norm", "-"], ["a very long name", "", "1"]]


@pytest.mark.parametrize("texts", [None, 0, 1, 3])
def test_text_is_what_tabulate_prints(texts: int | None) -> None:
    table = Table(HEADER, ROWS, texts)
    left = 3 if texts is None else texts
    expected = tabulate(
        [HEADER, *ROWS],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left"] * left + ["right"] * (3 - left),
    )
    assert table.text() == expected


def test_text_of_a_header_alone() -> None:
    assert Table(["layer", "kind"], []).text() == "layer  kind"


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError):
        Table(["layer", "kind"], [["conv1"]]).text()


def test_markdown() -> None:
    assert Table(["a", "b"], [["x|y", "1"]], texts=1).markdown().splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        r"| x\|y | 1 |",
    ]
    assert Table(["a", "b"], []).markdown().splitlines()[1] == "| --- | --- |"
    assert bullets(["one", "two"]) == "- one\n- two"


HOSTILE = [
    "two\nlines\r\t", "a|b", "<b>&amp;</b>", "__init__", "*.conv_dw", "[a](b)", "a\\|b", "_x_y_",
    "é µJ",
]  # fmt: skip


def test_names_with_markup_are_shown_as_they_are() -> None:
    parser = MarkdownIt("commonmark").enable("table")
    cells = [[name, "1"] for name in HOSTILE]
    expected = [visible(name) for name in HOSTILE]
    table = parser.parse(Table(["name", "x"], cells).markdown())
    assert _texts(table)[2::2] == expected
    assert _texts(parser.parse(bullets(HOSTILE))) == expected
    assert visible(HOSTILE[0]) == r"two\nlines\r\t" and visible(HOSTILE[-1]) == HOSTILE[-1]


def _texts(tokens: Sequence[Token]) -> list[str]:
    """Of each cell or paragraph; nothing in it may be more than text."""
    inline = [token.children or [] for token in tokens if token.type == "inline"]
    assert {child.type for children in inline for child in children} <= {"text"}
    return ["".join(child.content for child in children) for children in inline]


def test_every_cell_of_a_text_is_on_its_line() -> None:
    assert len(Table(HEADER, [[name, "", "1"] for name in HOSTILE]).text().splitlines()) == 10
    assert lines_text(HOSTILE).splitlines() == [visible(name) for name in HOSTILE]


def test_csv_reads_back() -> None:
    text = csv_text(["name", "x"], [["a, b", 1], ['"', None], ["line\nbreak", 0.1]])
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["name", "x"], ["a, b", "1"], ['"', ""], ["line\nbreak", "0.1"]
    ]  # fmt: skip
    assert not text.endswith("\n")


class Range(NamedTuple):
    low: float
    high: float


def test_json_holds_no_nan() -> None:
    content = {"range": Range(-math.inf, 2.0), "values": (1, math.nan, "nan", None, True)}
    expected = {"range": {"low": None, "high": 2.0}, "values": [1, None, "nan", None, True]}
    assert plain(content) == json.loads(json_text(content)) == expected


def test_shapes() -> None:
    assert shape_text((3, 224, 224)) == "3x224x224" and shape_text(()) == ""


class Answer(Report):
    def to_dict(self) -> dict[str, Any]:
        return {"answer": 42}

    def to_csv(self) -> str:
        return "answer\n42"

    def to_markdown(self) -> str:
        return "**42**"

    def __str__(self) -> str:
        return "answer  42"


def test_every_format_is_rendered() -> None:
    rendered = {form: Answer().render(form) for form in FORMATS}
    assert rendered == {
        "table": "answer  42", "json": '{\n  "answer": 42\n}', "csv": "answer\n42", "md": "**42**"
    }  # fmt: skip
