"""Compilers and emulators, where they are present; the project's CI demands them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adderize.export.c.riscv import PACKAGES, build_counter, missing_tools
from adderize.export.c.tools import host_compiler


def _missing(what: str) -> None:
    if os.environ.get("ADDERIZE_REQUIRE_EMULATOR") == "1":
        pytest.fail(f"{what}, which ADDERIZE_REQUIRE_EMULATOR=1 demands")
    pytest.skip(what)


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler of this machine."""
    found = host_compiler()
    if found is None:
        _missing("no C compiler")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def riscv() -> None:
    """A compiler and an emulator of RISC-V cores."""
    missing = missing_tools()
    if missing:
        _missing(f"no {', '.join(missing)}: install Debian's packages {PACKAGES}")


@pytest.fixture(scope="session")
def counter(riscv: None, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator's plugin that counts instructions."""
    return build_counter(tmp_path_factory.mktemp("counter") / "counter.so")
