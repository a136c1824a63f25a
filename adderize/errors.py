"""The one error type of the package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class AdderizeError(ValueError):
    """A wrong argument, an unsupported model or an unusable file.

    The message says what was found, what was expected and what to do.
    """


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def classed(error: BaseException) -> str:
    """The class of an error and what it says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def classed_line(error: BaseException) -> str:
    """The class of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Up to five names, and how many more there are."""
    shown = separator.join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


@contextmanager
def failing(what: str, advice: str = "") -> Iterator[None]:
    """What a user's network raises meanwhile becomes an AdderizeError: what fails, and why."""
    try:
        yield
    except AdderizeError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise AdderizeError(f"{what}: {first_line(error)}{advice}") from error


@contextmanager
def named(what: str) -> Iterator[None]:
    """An AdderizeError that is raised meanwhile names what it is about."""
    try:
        yield
    except AdderizeError as error:
        raise AdderizeError(f"{what}: {error}") from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the file system refuses meanwhile becomes an AdderizeError that names the path."""
    try:
        yield
    except OSError as error:
        raise AdderizeError(f"cannot write to {path}: {error.strerror or error}") from error
