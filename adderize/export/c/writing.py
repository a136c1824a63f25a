"""An integer network as a folder of C."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from adderize.arguments import own_path
from adderize.errors import AdderizeError
from adderize.export.c.examples import makefile, test_program
from adderize.export.c.network import Network
from adderize.export.c.report import CReport
from adderize.export.c.source import constants, header, source
from adderize.export.c.tools import LAYERS, SOURCES
from adderize.integer import IntegerNetwork
from adderize.integer.integer_network import check_integer_network
from adderize.whole_files import replaced_files

_KEYWORDS = frozenset({
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict",
    "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union",
    "unsigned", "void", "volatile", "while",
})  # fmt: skip
# Of C's library: a folder that the compiler looks into for NAME.h must not hide them.
_HEADERS = frozenset({
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits",
    "locale", "math", "setjmp", "signal", "stdarg", "stdbool", "stddef", "stdint", "stdio",
    "stdlib", "string", "tgmath", "time", "wchar", "wctype",
})  # fmt: skip


def export_c(
    integer_network: IntegerNetwork,
    folder: str | os.PathLike[str],
    *,
    name: str = "network",
    examples: Tensor | None = None,
) -> CReport:
    """Write an integer network as C99 for processors that cannot multiply.

    The folder gets NAME.h with ``void NAME_run(const uint8_t *image, int32_t *logits)``, NAME.c
    (one call a layer), NAME_filters.h and .c (the constants), adderize_layers.h and .c (the
    functions of layers, the same for every network), and NAME_report.txt and .json; with examples
    also NAME_test.c, which compares the logits, and NAME.mk, which builds and runs it. The same
    network gives the same bytes.

    The C computes bit for bit what the network does in PyTorch. It multiplies and divides nothing,
    not even for indices, and needs no C library, no heap and no floats.

    Args:
        integer_network: from :func:`adderize.integer.to_integer`.
        folder: is made where it is missing. Files of the same names are replaced, all or none; a
            folder without NAME.h, which does not compile, is what a process that was killed
            meanwhile left.
        name: of the network: files and functions begin with it.
        examples: images for NAME_test.c, uint8 (N, C, H, W).

    Returns:
        what an inference costs.

    Raises:
        AdderizeError: not an integer network; a name that C does not take; examples that are not
            images of the network; an instruction without a form in C, which is named. Nothing has
            been written then. A folder that cannot be written to.
    """
    check_integer_network(integer_network)
    _check_name(name)
    files = _examples(integer_network, name, examples)
    network = Network.of(integer_network.program)
    report = CReport.of(network, name)
    files |= {
        f"{name}.h": header(network, name),
        f"{name}.c": source(network, name),
        **constants(network, name),
        **{file: (SOURCES / file).read_text(encoding="utf-8") for file in LAYERS},
    }
    _write(files | _reports(report), own_path(folder), f"{name}.h")
    return report


def write_report(report: CReport, folder: Path) -> None:
    _write(_reports(report), folder, f"{report.name}_report.json")


def _reports(report: CReport) -> dict[str, str]:
    return {
        f"{report.name}_report.txt": f"{report}\n",
        f"{report.name}_report.json": f"{report.to_json()}\n",
    }


def _write(files: dict[str, str], folder: Path, head: str) -> None:
    with replaced_files(folder, head) as unfinished:
        for file, text in files.items():
            (unfinished / file).write_text(text, encoding="utf-8")


def _check_name(name: str) -> None:
    taken = name in _KEYWORDS | _HEADERS or name.startswith("adderize_")
    if taken or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise AdderizeError(
            f"the name is {name!r}; expected letters, digits and underscores, a letter first, not "
            "a word of C, a header of its library nor one that begins with adderize_"
        )


def _examples(network: IntegerNetwork, name: str, examples: Tensor | None) -> dict[str, str]:
    if examples is None:
        return {}
    if not isinstance(examples, Tensor) or examples.dim() != 4 or not len(examples):
        found = tuple(examples.shape) if isinstance(examples, Tensor) else type(examples).__name__
        raise AdderizeError(f"the examples are {found}; expected images, uint8 (N, C, H, W)")
    logits = network(examples.cpu()).flatten(1).to(torch.int32)
    return {
        f"{name}_test.c": test_program(name, examples.cpu(), logits),
        f"{name}.mk": makefile(name),
    }
