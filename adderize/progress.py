"""Progress bars on stderr, where that is a terminal: for what takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

_SHOWN = ContextVar("adderize_progress", default=False)
_DELAY = 2.0
_Item = TypeVar("_Item")


@contextmanager
def showing() -> Iterator[None]:
    """Show the bars of all that runs inside, as commands do; functions show none by themselves."""
    token = _SHOWN.set(True)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def steps(items: Iterable[_Item], text: str, total: int | None = None) -> Iterator[_Item]:
    """The items, one after another, counted by a bar; `total` where they have no length."""
    with _bar(text, show=_SHOWN.get(), iterable=items, total=total) as counted:
        yield from counted


def counter(total: int, text: str, *, show: bool) -> Any:
    """A bar to ``update()`` by hand, within ``with``; `show` decides, and the terminal."""
    return _bar(text, show=show, total=total)


def _bar(text: str, *, show: bool, **what: Any) -> Any:
    # None: where stderr is no terminal.
    quiet = None if show else True
    return tqdm(desc=text, disable=quiet, delay=_DELAY, leave=False, dynamic_ncols=True, **what)
