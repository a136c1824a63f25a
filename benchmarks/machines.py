"""Figures by machine, `benchmarks/NAME.json`: read, checked, written.

A file has the machine, and lists of rows as ``adderize bench ... --json`` gives them: `layers`,
`step`, `inference` and `int8`, the limits of one core by instruction set (pairs a second), and what
is only known in sum: `rates` of layers, an epoch in a CUDA graph. A figure is a number, or a list
of numbers where several runs gave several: their least and largest, or one of each run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adderize.bench.layers import PASSES
from adderize.errors import AdderizeError

FOLDER = Path(__file__).parent

Machine = dict[str, Any]
_Check = Callable[[Any], bool]


def load(file: Path) -> Machine:
    """The contents of a machine's file.

    Raises:
        AdderizeError: it is no JSON, or an entry is missing, unknown or of the wrong kind.
    """
    try:
        contents = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise AdderizeError(f"{file} cannot be read as JSON: {error}") from error
    check(contents, str(file))
    return dict(contents)


def check(contents: Any, name: str) -> None:
    """AdderizeError with the first thing that makes this no machine's file."""
    for problem in _problems(contents):
        raise AdderizeError(f"{name}: {problem}; benchmarks/machines.py says what a file holds")


def load_all() -> dict[str, Machine]:
    """Every machine by its file's name: processors, then GPUs."""
    machines = {file.stem: load(file) for file in FOLDER.glob("*.json")}

    def place(name: str) -> tuple[bool, str]:
        machine = machines[name]["machine"]
        return "gpu" in machine, machine["name"]

    return {name: machines[name] for name in sorted(machines, key=place)}


def text(machine: Machine) -> str:
    """As a file holds it: a row a line."""
    sections = (f' "{key}": {_section(value)}' for key, value in machine.items())
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _section(value: Any) -> str:
    if isinstance(value, Mapping):
        lines = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
        return "{\n  " + ",\n  ".join(lines) + "\n }"
    return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_figure(value: Any) -> bool:
    return _is_number(value) or (_is_list(value) and bool(value) and all(map(_is_number, value)))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _are_figures(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_figure, value.values()))


_KINDS: dict[_Check, str] = {
    _is_text: "a text",
    _is_count: "an integer of at least 1",
    _is_figure: "a number or a list of numbers",
    _is_list: "a list",
    _are_texts: "a list of texts",
    _are_figures: "names and their figures",
}
_NETWORK = {"arch": _is_text, "batch": _is_count, "threads": _is_count, "input_size": _is_list}
_NETWORK_FIGURES = (
    *("cnn_ms", "adder_ms", "ratio", "cnn_peak_mb", "adder_peak_mb", "memory_ratio"),
    *("cnn_tf32_ms", "adder_tf32_ms", "cnn_bf16_ms", "adder_bf16_ms"),
    *("limit_ms", "percent_of_limit", "pairs_per_second"),
)
_SPEEDS: dict[str, _Check] = {**_NETWORK, **dict.fromkeys(_NETWORK_FIGURES, _is_figure)}
# What a row or the machine may hold; the first of each must be there.
ROWS: dict[str, dict[str, _Check]] = {
    "layers": {"layer": _is_text, "pairs": _is_count, **dict.fromkeys(PASSES, _are_figures)},
    "rates": {
        "pass": _is_text,
        "layers": _is_text,
        **dict.fromkeys(("pairs_per_second", "percent_of_limit", "ratio"), _is_figure),
    },
    "step": {
        **_SPEEDS,
        **dict.fromkeys(("adder_phases_ms", "adder_bf16_phases_ms"), _are_figures),
    },
    "inference": _SPEEDS,
    "int8": {
        **_NETWORK,
        "instruction_set": _is_text,
        **dict.fromkeys(("ms", "speedup", "percent_of_limit"), _are_figures),
        **dict.fromkeys(("cosine_mean", "cosine_min"), _is_figure),
    },
    "cuda_graph": {
        **_NETWORK,
        **dict.fromkeys(("cnn_s_per_epoch", "adder_s_per_epoch"), _is_figure),
    },
}
MACHINE: dict[str, _Check] = {
    "name": _is_text,
    "processor": _is_text,
    "gpu": _is_text,
    "cores": _is_count,
    "threads": _is_count,
    "features": _are_texts,
    "versions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "date": _is_text,
    "notes": _are_texts,
}


def _problems(contents: Any) -> Iterator[str]:
    if not isinstance(contents, dict) or not isinstance(contents.get("machine"), dict):
        yield 'there is no "machine"'
        return
    yield from _entries(contents["machine"], MACHINE, "machine")
    limits = contents.get("limits", {})
    if not isinstance(limits, dict) or not all(map(_are_figures, limits.values())):
        yield "limits: expected names and their figures for each instruction set"
    for section, rows in contents.items():
        if section in ("machine", "limits"):
            continue
        if section not in ROWS:
            yield f"{section!r} is unknown; expected some of {', '.join(ROWS)}"
        elif not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            yield f"{section}: expected a list of rows"
        else:
            for number, row in enumerate(rows):
                yield from _entries(row, ROWS[section], f"{section}[{number}]")


def _entries(row: dict[str, Any], known: Mapping[str, _Check], where: str) -> Iterator[str]:
    first = next(iter(known))
    if first not in row:
        yield f"{where}: {first!r} is missing"
    for key, value in row.items():
        if key not in known:
            yield f"{where}: {key!r} is unknown; expected some of {', '.join(known)}"
        elif not known[key](value):
            expected = _KINDS.get(known[key], "names and their texts")
            yield f"{where}.{key} is {value!r}; expected {expected}"
