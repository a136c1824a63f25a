"""What an operation costs: energy and latency tables with their sources.

A table prices kinds of operations; a user's own table is a JSON file such as

    {"name": "my chip", "unit": "joule", "source": "data sheet",
     "multiplications": 3.1e-12, "additions": 0.1e-12, "comparisons": 0.1e-12}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adderize.arguments import is_finite, own_path
from adderize.errors import AdderizeError
from adderize.formulas import KINDS, Operations

JOULE, CYCLES = "joule", "cycles"


@dataclass(frozen=True)
class CostTable:
    """Price of each kind of operation.

    Attributes:
        name: short, as reports show it.
        unit: ``"joule"`` or ``"cycles"``.
        source: publication, table or measurement that the prices come from.
        prices: unit per operation, by the kinds of
            :class:`adderize.formulas.Operations`. A kind without a price is left out of
            the cost; :meth:`unpriced` names it.
        sources: of the kinds whose price comes from elsewhere.
    """

    name: str
    unit: str
    source: str
    prices: Mapping[str, float] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)

    def cost(self, operations: Operations) -> float:
        """In the table's unit, for operations one after another."""
        counts = operations.by_kind()
        return math.fsum(counts[kind] * price for kind, price in self.prices.items())

    def unpriced(self, operations: Operations) -> list[str]:
        """Kinds that occur but have no price."""
        return [
            kind
            for kind, count in operations.by_kind().items()
            if count and kind not in self.prices
        ]

    def other_sources(self, operations: Operations) -> dict[str, str]:
        """Sources other than `source` of the kinds that occur."""
        counts = operations.by_kind()
        return {kind: source for kind, source in self.sources.items() if counts[kind]}


# Horowitz's table has no shifts; these are as quoted, see docs/counting.md. Where numbers are
# floats, theirs is that of integers as wide.
_SHIFTS = "H. You et al., ShiftAddLLM, NeurIPS 2024, table 1: a shift of {bits} bits, 45 nm"


def _horowitz(
    dtype: str, multiplication: float, addition: float, shift: float, bits: int
) -> CostTable:
    source = (
        "M. Horowitz, Computing's energy problem, ISSCC 2014, 45 nm, 0.9 V; arithmetic only, "
        "no memory access"
    )
    prices = {
        "multiplications": multiplication * 1e-12,
        "additions": addition * 1e-12,
        "shifts": shift * 1e-12,
    }
    sources = {"shifts": _SHIFTS.format(bits=bits)}
    return CostTable(f"Horowitz 45 nm {dtype}", JOULE, source, prices, sources)


ENERGY = {
    "float32": _horowitz("float32", 3.7, 0.9, 0.13, 32),
    "float16": _horowitz("float16", 1.1, 0.4, 0.057, 16),
    "int32": _horowitz("int32", 3.1, 0.1, 0.13, 32),
    "int8": _horowitz("int8", 0.2, 0.03, 0.024, 8),
}

LATENCY = {
    "via-nano-2000": CostTable(
        "VIA Nano 2000",
        CYCLES,
        "float latencies as AdderNet (CVPR 2020) uses them: multiply 4 cycles, add 2; operations "
        "one after another",
        {"multiplications": 4.0, "additions": 2.0, "shifts": 1.0},
        {"shifts": "A. Fog, Instruction tables, VIA Nano 2000: integer SHL, SAR by a constant"},
    )
}


def energy_tables(table: CostTable | str | Path | None) -> Mapping[str, CostTable]:
    """Tables in joule by the format of numbers: ``None`` is ENERGY; a name of ENERGY, a JSON file
    or a table itself prices every format."""
    if table is None:
        return ENERGY
    return dict.fromkeys(ENERGY, _resolve(table, ENERGY, JOULE))


def latency_table(table: CostTable | str | Path | None) -> CostTable:
    """A table in cycles: ``None`` is the paper's VIA Nano 2000; a name of LATENCY, a JSON file, or
    a table itself."""
    return _resolve("via-nano-2000" if table is None else table, LATENCY, CYCLES)


def _resolve(table: CostTable | str | Path, known: dict[str, CostTable], unit: str) -> CostTable:
    if not isinstance(table, CostTable):
        known_name = isinstance(table, str) and table in known
        table = known[str(table)] if known_name else _read(table, known)
    if table.unit != unit:
        raise AdderizeError(f"the cost table {table.name!r} is in {table.unit}; expected {unit}")
    return table


def _read(path: str | Path, known: dict[str, CostTable]) -> CostTable:
    path = own_path(path)
    if not path.is_file():
        raise AdderizeError(f"no cost table {path}; expected {', '.join(known)} or a JSON file")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise AdderizeError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise AdderizeError(f"{path} holds a {type(content).__name__}; expected an object")
    return _checked(content, path)


def _checked(content: dict[str, Any], path: Path) -> CostTable:
    name, source = content.get("name", path.stem), content.get("source", str(path))
    unit = content.get("unit")
    prices = {key: content[key] for key in content.keys() - {"name", "unit", "source"}}
    if not isinstance(name, str) or not isinstance(source, str) or not prices:
        raise AdderizeError(
            f"{path} has the keys {sorted(content)}; expected texts for name, unit and source and "
            f"prices for some of {', '.join(KINDS)}"
        )
    if unit not in (JOULE, CYCLES):
        raise AdderizeError(f'{path} has the unit {unit!r}; expected "{JOULE}" or "{CYCLES}"')
    for kind, price in sorted(prices.items()):
        if kind not in KINDS:
            raise AdderizeError(f"{path} prices {kind!r}; expected some of {', '.join(KINDS)}")
        if not is_finite(price) or price < 0:
            raise AdderizeError(f"{path} prices {kind} at {price!r}; expected a number, 0 or more")
    return CostTable(name, unit, source, prices)
