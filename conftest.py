"""The Python blocks of the README and of docs/ are tests; each page is one namespace."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

_ROOT = Path(__file__).parent


def _enter(namespace: dict[str, Any]) -> None:
    """An empty folder to write to, and the names that pages take for given."""
    import torch

    from tests.docs.given import given

    torch.set_num_threads(1)
    torch.manual_seed(0)
    namespace["_folder"] = tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)
    namespace.update(given())


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(_ROOT)
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[SkipParser(), PythonCodeBlockParser()],
    path=str(_ROOT),
    patterns=["README.md", "docs/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()
