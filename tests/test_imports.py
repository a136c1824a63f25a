"""Imports name the module that they mean, wherever they are run from."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "adderize").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in FILES}


def imported(node: ast.AST) -> list[str]:
    """Full names; of ``from package import name`` both, since the name may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level and node.module, "imports are absolute"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_modules_do_not_import_public_names_from_the_package_itself() -> None:
    """Those are resolved lazily, past every check of the layers."""
    known = {name.removeprefix("adderize.") for name in PATHS} | {"__version__"}
    past = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "adderize"
        for alias in node.names
        if alias.name not in known
    ]
    assert past == []


def test_no_import_depends_on_a_folder_in_sys_path() -> None:
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("tests", "recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        for beside in [path.parent / name.split(".")[0]]
        if beside.exists() or beside.with_suffix(".py").exists()
    ]
    assert bare == []
