"""Finding and loading the native library: what falls back, and what must not go unnoticed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adderize import AdderizeError
from adderize.ops import choice, native
from adderize.ops.native import library

built = pytest.mark.skipif(not native.available()[0], reason="no native library was built")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test loads the library anew, and so does whatever comes after it."""
    cpu = native.info().get("cpu")
    for variable in ("ADDERIZE_REQUIRE_NATIVE", "ADDERIZE_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    for cached in (library.load, choice._warn_of_slowness):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (library.load, choice._warn_of_slowness):
        cached.cache_clear()
    if cpu:
        native.set_cpu(str(cpu))


@built
def test_a_stale_library_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    with pytest.raises(AdderizeError, match=r"has ABI version \d+ .* needs 99. Reinstall adderize"):
        choice.choose("cpu")
    assert "needs 99" in str(native.info()["reason"])


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("cc"), reason="no C compiler")
def test_a_library_of_another_release_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, source = tmp_path / "libadderize.so", tmp_path / "old.c"
    source.write_text("int adderize_abi_version(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(old)], check=True)
    monkeypatch.setenv("ADDERIZE_LIBRARY", str(old))
    needs = rf"has ABI version 1 but .* {library.ABI_VERSION}. Unset ADDERIZE_LIBRARY, or reinstall"
    with pytest.raises(AdderizeError, match=needs):
        choice.choose("cpu")


def test_the_declarations_and_their_version_change_together() -> None:
    """Fails where adderize.h has changed: raise its version, library.py's and these two."""
    header = Path(library.__file__).parents[2] / "csrc" / "adderize.h"
    declarations = " ".join(re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL).split())
    digest = hashlib.sha256(declarations.encode()).hexdigest()[:16]
    assert (library.ABI_VERSION, digest) == (9, "fa1588ae18416771")
    assert f"#define ADDERIZE_ABI_VERSION {library.ABI_VERSION} " in declarations
    assert set(library._SIGNATURES) <= set(re.findall(r"\w+(?=\()", declarations))


@built
def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDERIZE_CPU", "portable")
    assert choice.choose("cpu").reason.startswith("native kernels for portable from")
    library.load.cache_clear()
    monkeypatch.setenv("ADDERIZE_CPU", "sse9")
    with pytest.raises(AdderizeError, match="ADDERIZE_CPU is 'sse9', but"):
        choice.choose("cpu")


def test_a_library_that_cannot_be_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDERIZE_LIBRARY", "/nowhere/libadderize.so")
    with pytest.raises(AdderizeError, match=r"cannot be loaded: .* Unset ADDERIZE_LIBRARY"):
        choice.choose("cpu")


def test_without_a_library_the_reference_serves_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ADDERIZE_LIBRARY", raising=False)
    monkeypatch.setattr(library.importlib.resources, "files", lambda package: tmp_path)
    with pytest.warns(UserWarning, match="slow reference: the native library was not built"):
        assert choice.choose("cpu").name == "reference"
    assert native.info() == {
        "available": False,
        "reason": "the native library was not built: reinstall adderize where a C++17 compiler is "
        "available",
    }


def test_forced_native_refuses_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDERIZE_BACKEND", "native")
    with pytest.raises(AdderizeError, match=r"torch\.float64"):
        choice.choose("cpu", torch.float64)
