"""Fixtures of the ops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adderize.ops import native


@pytest.fixture(params=[*native.info().get("cpus", []), "reference"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set of this machine, and plain PyTorch."""
    if request.param == "reference":
        monkeypatch.setenv("ADDERIZE_BACKEND", "reference")
        yield request.param
    else:
        before = str(native.info()["cpu"])
        native.set_cpu(request.param)
        yield request.param
        native.set_cpu(before)
