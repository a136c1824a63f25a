"""Pages that are made from the code at every build: the API reference and the commands' help.

Nothing here needs MkDocs, so that tests read the same pages.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from unittest import mock

import adderize
from adderize import cli

# What users import from, and what a page says of it.
PUBLIC = {
    "adderize": "The package can be called: `adderize(model)` is `adderize.surgery.adderize`.",
    "adderize.functional": "Operations as those of `torch.nn.functional`.",
    "adderize.layers": "Layers as those of `torch.nn`.",
    "adderize.surgery": "Conversion of networks and back, and the plan that says what and why.",
    "adderize.callbacks": "Lightning's callbacks, under the address that configuration files name.",
    "adderize.transfer": "A trained network's filters as adders.",
    "adderize.quantize": "8-bit networks.",
    "adderize.integer": "Networks without a multiplication, and integer-only networks.",
    "adderize.export": "Networks in other forms than PyTorch's.",
    "adderize.checkpoints": "Networks on disk.",
    "adderize.counting": "Operations, energy and latency.",
    "adderize.inspection": "What `adderize inspect` looks at.",
    "adderize.reporting": "The page of `adderize report`.",
    "adderize.models": "Networks of the AdderNet paper, and more.",
    "adderize.data": "Data sets by where they come from.",
}
# Packages with an `__all__` for the modules beside them.
INTERNAL = frozenset({"adderize.dataflow"})
_WIDTH = "78"


def pages() -> dict[str, str]:
    """The Markdown of every generated page by its path in the site."""
    reference = {_path(module): _reference(module) for module in PUBLIC}
    return {**reference, "reference/commands.md": _commands()}


def entries(module: str) -> dict[str, str]:
    """The public names of a module, and the address that documents each."""
    found = importlib.import_module(module)
    homes = {**adderize._HOMES, "adderize": "adderize.surgery"} if module == "adderize" else {}
    addresses = {}
    for name in found.__all__:
        address = f"{homes.get(name, module)}.{name}"
        # Under the name of a function and of its module mkdocstrings shows the module.
        shadowed = getattr(getattr(found, name), "__module__", None) == address
        addresses[name] = f"{address}.{name}" if shadowed else address
    return addresses


def _path(module: str) -> str:
    return f"reference/{module.rpartition('.')[2]}.md"


def _reference(module: str) -> str:
    lines = [f"# {module}", "", PUBLIC[module], ""]
    elsewhere = []
    for name, address in entries(module).items():
        home = address.rpartition(".")[0]
        if home != module and home in PUBLIC:
            elsewhere.append(f"- [`{name}`][{address}]: {_summary(address)}")
        else:
            lines += [f"::: {address}", ""]
    return "\n".join([*lines[:4], *elsewhere, "", *lines[4:]])


def _summary(address: str) -> str:
    """The first sentence of a docstring, its Sphinx roles as code."""
    home, _, name = address.rpartition(".")
    documented = inspect.getdoc(getattr(importlib.import_module(home), name)) or ""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(documented.partition("\n\n")[0].split()))


def _commands() -> str:
    lines = ["# Commands", ""]
    with mock.patch.dict(os.environ, COLUMNS=_WIDTH, NO_COLOR="1"):
        for parser in _parsers(cli._parser([])):
            lines += [f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _parsers(part)
