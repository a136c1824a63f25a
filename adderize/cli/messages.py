"""What commands say on stderr: one line each."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from adderize.errors import AdderizeError, classed, one_line

_PROGRAM = "adderize"


def note(text: str) -> None:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)


def failed(error: BaseException, code: int, *, debug: bool) -> int:
    """Say why a command failed, with the traceback where it was asked for; returns the code."""
    if debug:
        traceback.print_exception(error)
    text = one_line(error)
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif not isinstance(error, AdderizeError):
        text = f"unexpected {classed(error)}"
        if not debug:
            text += " (--debug shows the traceback)"
    note(text)
    return code


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Warnings without the place in the code, which a user of a command has not written."""
    usual = warnings.formatwarning
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    text = " ".join(str(message).split()).removeprefix(f"{_PROGRAM}: ")
    return f"{_PROGRAM}: warning: {text}\n"
