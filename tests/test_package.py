"""What `import adderize` costs and offers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adderize

HEAVY = ("fvcore", "lightning", "timm", "torchvision", "triton", "matplotlib")


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("statement", ["import adderize", "import adderize.cli"])
def test_light_imports(statement: str) -> None:
    assert not _modules_after(statement).intersection(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "from adderize import AdderConv2d, scale_adder_gradients_",
        "from adderize import adderize, plan, restore",
    ],
)
def test_light_imports_with_the_ops(statement: str) -> None:
    # Torch's FLOP counter, which knows the ops, imports triton where it is installed.
    after = _modules_after(statement) - {"triton"}
    assert not after.intersection(HEAVY) and "adderize.ops.triton" not in after


def test_every_public_name_resolves() -> None:
    for name in adderize.__all__:
        assert getattr(adderize, name) is not None
    assert set(adderize.__all__) <= set(dir(adderize))


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="adderise"):
        adderize.adderise  # noqa: B018


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_no_file_of_the_project_is_ignored() -> None:
    """Wheels, ruff and `git add` leave out in silence what .gitignore matches."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    ignored = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    assert ignored == ""
