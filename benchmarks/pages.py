"""Rewrites the tables of figures in the README and in docs/ from `benchmarks/*.json`.

    python -m benchmarks.pages [--check]

A table stands between ``<!-- figures MACHINE TABLE -->`` or ``<!-- figures overview ARCH ... -->``
and ``<!-- end of figures -->``. With --check nothing is written, and stale tables are an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from adderize.errors import AdderizeError
from adderize.tables import Table
from benchmarks.machines import Machine, load_all
from benchmarks.tables import OF_MACHINE, overview

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_END = "<!-- end of figures -->"
_FIGURES = re.compile(rf"(<!-- figures ([^\n]*) -->\n)(.*?)\n?({_END})", re.DOTALL)


def rewritten(page: str, machines: Mapping[str, Machine]) -> str:
    """The text of a page with its tables as the figures are now.

    Raises:
        AdderizeError: a table or a machine that there is not, or a table without an end.
    """
    if page.count("<!-- figures ") != len(_FIGURES.findall(page)):
        raise AdderizeError(f"a table of figures has no end; expected {_END} behind it")

    def replace(found: re.Match[str]) -> str:
        table = _table(found[2].split(), machines).markdown()
        return f"{found[1]}\n{table}\n\n{found[4]}"

    return _FIGURES.sub(replace, page)


def _table(words: list[str], machines: Mapping[str, Machine]) -> Table:
    first, *rest = words
    if first == "overview":
        return overview(machines, *rest)
    if first not in machines or len(rest) != 1 or rest[0] not in OF_MACHINE:
        raise AdderizeError(
            f"there is no table {' '.join(words)!r}; expected one of the machines "
            f"{', '.join(machines)} and one of the tables {', '.join(OF_MACHINE)}, or overview"
        )
    return OF_MACHINE[rest[0]](machines[first])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where stale")
    check = parser.parse_args(argv).check
    stale = []
    try:
        machines = load_all()
        for page in PAGES:
            before = page.read_text()
            if (after := rewritten(before, machines)) != before:
                stale.append(page)
                if not check:
                    page.write_text(after)
    except AdderizeError as error:
        print(error, file=sys.stderr)
        return 1
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is stale' if check else 'rewritten'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
