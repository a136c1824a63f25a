"""What an exported network costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from adderize.export.c.network import Network
from adderize.export.c.work import bytes_moved, constant_bytes, work_of
from adderize.tables import Report, Table, csv_text


@dataclass(frozen=True)
class OnCore:
    """An inference on an emulated core.

    Attributes:
        core: the instruction set, and the compiler's optimisation.
        flash: bytes of code and constants.
        memory: bytes that it writes to beside the stack.
        stack: the most bytes of it.
        instructions: executed for one image.
    """

    core: str
    flash: int
    memory: int
    stack: int
    instructions: int


@dataclass(frozen=True)
class CReport(Report):
    """What one inference of an exported network costs; prints as a table.

    Attributes:
        name: of the network.
        constants: bytes of filters, factors and offsets.
        arena: bytes of activations.
        additions, shifts, comparisons: index arithmetic aside.
        multiplications: 0.
        bytes_moved: each step's operands, results and constants, once.
        cores: what was measured.
    """

    name: str
    constants: int
    arena: int
    additions: int
    shifts: int
    comparisons: int
    bytes_moved: int
    multiplications: int = 0
    cores: tuple[OnCore, ...] = ()

    @classmethod
    def of(cls, network: Network, name: str) -> CReport:
        constants, work = constant_bytes(network), work_of(network.program)
        counts = (work.additions, work.shifts, work.comparisons)
        return cls(name, constants, network.arena.size, *counts, bytes_moved(network))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_csv(self) -> str:
        return csv_text(["quantity", "value"], self._rows())

    def to_markdown(self) -> str:
        return self._table().markdown()

    def __str__(self) -> str:
        return self._table().text()

    def _table(self) -> Table:
        return Table([self.name, ""], [[name, f"{value:,}"] for name, value in self._rows()], 1)

    def _rows(self) -> list[tuple[str, int]]:
        rows = [
            ("constants, bytes", self.constants),
            ("arena, bytes", self.arena),
            ("additions", self.additions),
            ("shifts", self.shifts),
            ("comparisons", self.comparisons),
            ("multiplications", self.multiplications),
            ("bytes moved", self.bytes_moved),
        ]
        for core in self.cores:
            rows += [
                (f"{core.core}: flash, bytes", core.flash),
                (f"{core.core}: memory, bytes", core.memory),
                (f"{core.core}: stack, bytes", core.stack),
                (f"{core.core}: instructions", core.instructions),
            ]
        return rows
