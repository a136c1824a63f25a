"""Docstrings as Markdown: Sphinx's roles and its literal blocks, which `help()` readers know."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):`~?([^`]+)`")
_MATHS = re.compile(r":math:`([^`]+)`")


class Roles(griffe.Extension):
    """Turns ``:func:`count``` into code, and the ``::`` before a literal block into a colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", obj.docstring.value)
        text = _MATHS.sub(lambda found: f"`{_plain(found[1])}`", text)
        obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _plain(formula: str) -> str:
    return formula.replace(r"\eta", "eta").replace(r"\sqrt{k}", "sqrt(k)")
