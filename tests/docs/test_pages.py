"""The documentation names every public object, and its command lines are ones that exist."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adderize
from adderize import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# In a fenced block, behind a prompt, or indented; running text has backticks.
_COMMAND = re.compile(r"^(?:\$ |    )?((?:adderize |[^`|\n]*-m recipes\.)[^`\n]*)$", re.MULTILINE)


def _generated() -> object:
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "docs/generate/pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = _generated()


def test_every_module_with_public_names_has_a_page() -> None:
    packages = [info.name for info in pkgutil.iter_modules(adderize.__path__, "adderize.")]
    modules = ["adderize", *packages]
    public = {m for m in modules if hasattr(importlib.import_module(m), "__all__")}
    assert public - generated.INTERNAL == set(generated.PUBLIC), "list it in docs/generate/pages.py"


@pytest.mark.parametrize("module", generated.PUBLIC)
def test_every_public_name_has_an_entry_and_a_docstring(module: str) -> None:
    pages = "\n".join(generated.pages().values())
    for name, address in generated.entries(module).items():
        assert f"::: {address}\n" in pages, f"{address} has no entry in the reference"
        assert address not in sys.modules, f"{address} would show the module of that name"
        found = getattr(importlib.import_module(module), name)
        if callable(found):
            assert inspect.getdoc(found), f"{address} has no docstring"


def test_reference_pages_are_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in [*generated.pages(), *(path.name for path in (ROOT / "docs").glob("*.md"))]:
        assert page in navigation, f"{page} is missing in nav of mkdocs.yml"


def test_help_of_every_command_is_a_page() -> None:
    help_page = generated.pages()["reference/commands.md"]
    assert all(f"## adderize {command}\n" in help_page for command in cli.COMMANDS)
    assert "## adderize bench layers\n" in help_page and "--debug" in help_page


def _command_lines() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in _COMMAND.findall(text):
            yield page, line


LINES = [pytest.param(line, id=f"{page.name}: {line}") for page, line in _command_lines()]


@pytest.mark.parametrize("line", LINES)
def test_command_lines_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "adderize":
        parser, rest = cli._parser(words[1:]), words[1:]
    else:
        name = next(word for word in words if word.startswith("recipes."))
        rest = words[words.index(name) + 1 :]
        parser = _recipe_parser(name)
    try:
        parser.parse_args(rest)
    except SystemExit as stop:
        pytest.fail(f"{line!r} is refused with exit code {stop.code}")


def _recipe_parser(name: str) -> argparse.ArgumentParser:
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    make = getattr(module, "_parser", None) or module.make_parser
    parser: argparse.ArgumentParser = make()
    return parser


@pytest.mark.parametrize("page", ["quick_start.md"])
def test_quick_commands_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("adderize plan", "adderize count", "adderize doctor")
    lines = [line for path, line in _command_lines() if path.name == page]
    chosen = [line for line in lines if line.startswith(quick)]
    assert len(chosen) >= 3
    for line in chosen:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0
    assert capsys.readouterr().out


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_instructions_in_the_readme_are_those_of_the_page() -> None:
    readme, page = (ROOT / name for name in ("README.md", "docs/microcontroller.md"))
    rows = [line for line in readme.read_text().splitlines() if "| RV32I" in line]
    assert len(rows) == 6 and set(rows) <= set(page.read_text().splitlines())


def test_few_examples_are_not_run() -> None:
    skipped = sum(page.read_text().count("skip: next") for page in PAGES)
    assert skipped <= 6
