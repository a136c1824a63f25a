"""The one error type of the package."""

from __future__ import annotations

from collections.abc import Sequence


class AdderizeError(ValueError):
    """A wrong argument, an unsupported model or an unusable file.

    The message says what was found, what was expected and what to do.
    """


def listed(names: Sequence[str]) -> str:
    """Up to five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
