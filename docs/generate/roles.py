"""Docstrings as Markdown: Sphinx's roles and literal blocks, which `help()` readers know, and
entries for several names at once."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):`~?([^`]+)`")
_MATHS = re.compile(r":math:`([^`]+)`")
_SEVERAL_NAMES = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.MULTILINE)


class Roles(griffe.Extension):
    """Turns ``:func:`count``` into code, and the ``::`` before a literal block into a colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", obj.docstring.value)
        text = _MATHS.sub(lambda found: f"`{_plain(found[1])}`", text)
        before, mark, attributes = text.partition("Attributes:\n")
        text = before + mark + _SEVERAL_NAMES.sub(_one_name, attributes)
        obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _one_name(found: re.Match[str]) -> str:
    """``low, high`` without a space, which would begin the type, and with an empty type."""
    indent, names = found.groups()
    return indent + names.replace(" ", "\u00a0") + " (): "


def _plain(formula: str) -> str:
    return formula.replace(r"\eta", "eta").replace(r"\sqrt{k}", "sqrt(k)")
