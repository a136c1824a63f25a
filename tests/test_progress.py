"""Bars for a terminal that waits, and nothing for anything else."""

from __future__ import annotations

import io
import sys

import pytest

from adderize import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0.0)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest puts its own stderr back after those."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_steps_are_counted_where_shown(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.showing():
        assert list(progress.steps([1, 2, 3], "reading")) == [1, 2, 3]
    assert "reading" in screen.getvalue() and "/3" in screen.getvalue()


def test_functions_by_themselves_show_nothing(
    at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)
    assert list(progress.steps(iter("ab"), "reading")) == ["a", "b"]
    with progress.showing():
        pass
    assert list(progress.steps([1], "reading")) == [1]
    with progress.counter(2, "work", show=False) as bar:
        bar.update(2)
    assert screen.getvalue() == ""


def test_files_and_pipes_get_nothing(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress.showing(), progress.counter(1, "work", show=True) as bar:
        bar.update()
        assert list(progress.steps([1], "reading")) == [1]
    assert pipe.getvalue() == ""


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.showing():
        assert list(progress.steps(range(100), "reading")) == list(range(100))
    assert "reading" not in screen.getvalue()
