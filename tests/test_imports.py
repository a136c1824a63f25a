"""Modules import at their top; a function imports only what its module can do without."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    *("lightning", "timm", "torchvision", "fvcore", "triton", "onnx", "onnxscript", "onnxruntime"),
    *("matplotlib", "mlxtend", "pyarrow", "scipy", "PIL", "threadpoolctl", "jinja2"),
    *("argcomplete", "huggingface_hub"),
    *("torch", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.benchmark"),
)
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


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def at_the_top(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) or is_for_types(child):
            continue
        yield child
        yield from at_the_top(child)


def in_functions(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield node


@cache
def at_import(name: str) -> frozenset[str]:
    """What ``name`` and the packages around it import at their top."""
    around = [module for module in PATHS if f"{name}.".startswith(f"{module}.")]
    trees = [ast.parse(PATHS[module].read_text()) for module in around]
    return frozenset(
        other for tree in trees for node in at_the_top(tree) for other in imported(node)
    )


@cache
def loads(*names: str) -> frozenset[str]:
    """The heavy packages that importing ``names`` brings in."""
    found, waiting = set(names), list(names)
    while waiting:
        new = at_import(waiting.pop()) - found
        found |= new
        waiting += new
    return frozenset(h for h in HEAVY for name in found if f"{name}.".startswith(f"{h}."))


def test_functions_import_only_what_is_heavy() -> None:
    needless = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node in in_functions(path)
        if not loads(*imported(node)) - loads(module_name(path))
    ]
    assert needless == []


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
