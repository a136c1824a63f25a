"""C as text: names, comments, arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest

from adderize.export.c.text import WIDTH, comment, definition, identifiers


def test_names_of_constants_differ_too() -> None:
    adder, kept = ("_epilogue_terms", "_filters"), ("_terms",)
    layers = [("a", adder), ("a.epilogue", kept), ("a_", adder), ("a.", kept), ("größe", kept)]
    assert identifiers(layers) == ("a", "a_epilogue_2", "a_", "a__2", "gr__e")
    assert identifiers(reversed(layers[:2])) == ("a_epilogue", "a_2")


def test_no_name_is_that_of_a_type() -> None:
    assert identifiers([("adderize", ("_windows",)), ("1", ())]) == ("adderize_2", "layer_1")


@pytest.mark.parametrize("name", ["*/ int x; /*", "/*/", "*/*", "/" * 3 + "*" * 3 + "/" * 3])
def test_comments_end_where_they_end(name: str) -> None:
    text = comment(name)
    assert text.startswith("/* ") and text.endswith(" */")
    assert "*/" not in text[3:-3] and "/*" not in text[3:-3]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(256, dtype=np.uint8),
        np.array([-(2**31), 2**31 - 1, 0] * 9, np.int32),
        np.array([[2**32 - 1]], np.uint32),
        np.zeros(200, np.uint8),
    ],
)
def test_arrays_hold_their_values_in_lines_that_fit(values: np.ndarray) -> None:  # type: ignore[type-arg]
    text = definition("x", values).replace("INT32_MIN", str(-(2**31)))
    start = text.index("{")
    assert [int(n) for n in re.findall(r"-?\d+", text[start:])] == values.flatten().tolist()
    assert text[start:].count(",") == values.size - 1
    assert max(map(len, definition("x", values).splitlines())) <= WIDTH
