"""Golden files: the exact text of tables."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def check_golden(name: str, text: str) -> None:
    """Compare with a file; after an intended change, delete it and run once more."""
    path = FOLDER / name
    if not path.exists():
        path.write_text(text + "\n")
        pytest.fail(f"{path} was missing and has been written: look at it and run again")
    assert text + "\n" == path.read_text()
