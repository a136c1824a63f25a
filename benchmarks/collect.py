"""Makes a machine's file from what ``adderize bench ... --json`` wrote.

    python -m benchmarks.collect NAME --title "AMD Zen 4, 2 cores" FILE ... [--note TEXT ...]

writes `benchmarks/NAME.json` with the limits of ``adderize bench limits --threads 1`` and the rows
of the others, rounded to four digits. Of a GPU the one FILE is what ``adderize bench gpu-report``
wrote. ``python -m benchmarks.pages`` then rewrites the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adderize.errors import AdderizeError
from benchmarks.gpu_reports import of_a_gpu
from benchmarks.machines import FOLDER, Machine, check, text

_DIGITS = 4


def collected(title: str, notes: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> Machine:
    """The contents of a machine's file from reports of one machine.

    Raises:
        AdderizeError: the reports are of several machines or versions, or two hold limits.
    """
    abouts = [report["machine"] for report in reports]
    machine: Machine = {"machine": _about(title, notes, abouts)}
    if any("what" not in report for report in reports):
        if len(reports) > 1:
            raise AdderizeError("a GPU's report is one of several files; expected it alone")
        sections: Machine = _rounded(of_a_gpu(reports[0]))
        return machine | sections
    for report in reports:
        if report["what"] == "limits":
            if "limits" in machine:
                raise AdderizeError("two reports are of limits; expected one")
            rates = _rounded(report["rows"])
            machine["limits"] = {row.pop("instruction_set"): row for row in rates}
            continue
        for row in _rounded(report["rows"]):
            section = "int8" if "ms" in row else report["what"]
            machine.setdefault(section, []).append(row)
    return machine


def _about(title: str, notes: Sequence[str], abouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = abouts[0]
    for key in ("processor", "features", "torch", "versions"):
        if any(about[key] != first[key] for about in abouts):
            found = " and ".join(str(about[key]) for about in abouts)
            raise AdderizeError(f"the reports differ in {key}: {found}; expected one machine's")
    return {
        "name": title,
        "processor": first["processor"],
        "cores": first["cores"],
        "threads": max(about["threads"] for about in abouts),
        "features": first["features"],
        **({"gpu": first["gpu"]} if "gpu" in first else {}),
        "versions": {"torch": first["torch"], **first["versions"]}
        | ({"cuda": first["cuda"]} if "cuda" in first else {}),
        "date": max(about["date"] for about in abouts),
        "notes": list(notes),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="of the file in benchmarks/, without .json")
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--title", required=True, help="heads its column in the overview")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT")
    arguments = parser.parse_args(argv)
    try:
        reports = [json.loads(file.read_text()) for file in arguments.reports]
        machine = collected(arguments.title, arguments.note, reports)
        check(machine, arguments.name)
    except (AdderizeError, OSError, ValueError, KeyError) as error:
        print(f"no machine can be made of these files: {error!r}", file=sys.stderr)
        return 1
    (FOLDER / f"{arguments.name}.json").write_text(text(machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
