"""The operation counts of the AdderNet paper (Chen et al., CVPR 2020), and ours.

The paper counts the filter taps of all convolutions and fully connected layers, as if every one of
them were an adder, and nothing else. Beside that convention stands what the networks compute: but
for LeNet-5-BN the first and the last layer stay convolutions, and norms multiply.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from adderize.counting.costs import LATENCY
from adderize.counting.networks import NETWORKS, Network
from adderize.counting.quantities import quantity
from adderize.counting.trace import Call, trace
from adderize.counting.views import adder_twin, own_norms, read_as
from adderize.formulas import (
    ADDER_PAIR,
    CONVOLUTION_PAIR,
    FREE,
    KINDS,
    XNOR_PAIR,
    Operations,
)
from adderize.tables import Format, Table, bullets, csv_text, json_text

_ARITHMETICS = {
    "CNN": ("convolution", CONVOLUTION_PAIR),
    "AdderNet": ("adder", ADDER_PAIR),
    "BNN": ("xnor", XNOR_PAIR),
}
_PRODUCTS = ("aten::convolution", "aten::addmm", "adderize::adder_conv2d")
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}
_NANO = LATENCY["via-nano-2000"]


@dataclass(frozen=True)
class Entry:
    """One network in one arithmetic.

    Attributes:
        convention: operations by the paper's convention.
        full: all operations of the network.
        printed: what the paper prints: multiplications and additions, for BNN additions and XNORs;
            None where it prints nothing.
        difference: the paper's figure over ours by its convention, minus 1; 0 where ours rounds to
            the printed digits.
    """

    network: str
    arithmetic: str
    convention: Operations
    full: Operations
    printed: tuple[str, str] | None
    difference: float | None


def paper_table() -> list[Entry]:
    """Every network of the paper as CNN, AdderNet and BNN, counted now."""
    return [entry for network in NETWORKS for entry in _entries(network)]


def _entries(network: Network) -> list[Entry]:
    with torch.device("meta"):
        model = network.build()
    twin = adder_twin(model, network.input_size, **network.options)
    calls, added = trace(twin, network.input_size), own_norms(twin)
    entries = []
    for arithmetic, (form, pair) in _ARITHMETICS.items():
        skipped = added if form == "convolution" else set()
        full = sum((read_as(call, form) for call in calls if call.layer not in skipped), FREE)
        convention = sum(map(_pairs, calls)) * pair
        printed = network.printed.get(arithmetic)
        difference = _difference(convention, arithmetic, printed[1]) if printed else None
        entries.append(Entry(network.name, arithmetic, convention, full, printed, difference))
    return entries


def _pairs(call: Call) -> int:
    """Taps of a convolution, an adder or a fully connected layer: one multiplication each."""
    return read_as(call, "convolution").multiplications if call.operator in _PRODUCTS else 0


def _difference(convention: Operations, arithmetic: str, printed: str) -> float:
    count = {
        "CNN": convention.multiplications,
        "AdderNet": convention.additions,
        "BNN": convention.xnors,
    }[arithmetic]
    unit, decimals = _UNITS[printed[-1]], len(printed.partition(".")[2]) - ("." in printed)
    paper = float(printed[:-1]) * unit
    if f"{count / unit:.{decimals}f}" == printed[:-1]:
        return 0.0
    return paper / count - 1


def _table(entries: list[Entry]) -> Table:
    header = [
        "network", "as", "mul", "add", "xnor", "cycles", "paper", "difference",
        "mul in full", "add in full", "xnor in full",
    ]  # fmt: skip
    return Table(header, [_cells(entry) for entry in entries], texts=2)


def _cells(entry: Entry) -> list[str]:
    by_convention, full = entry.convention, entry.full
    printed = " / ".join(entry.printed) if entry.printed else "-"
    cycles = "-" if by_convention.xnors else quantity(_NANO.cost(by_convention))
    return [
        entry.network, entry.arithmetic, *map(_count, _shown(by_convention)), cycles, printed,
        _described(entry.difference), *map(_count, _shown(full)),
    ]  # fmt: skip


def _described(difference: float | None) -> str:
    if difference is None:
        return "-"
    if abs(difference) < 0.0005:
        return "rounding" if difference else "none"
    return f"{difference:+.1%}"


def _shown(operations: Operations) -> tuple[int, int, int]:
    return operations.multiplications, operations.additions, operations.xnors


def _count(number: int) -> str:
    return quantity(number) if number else "0"


def _notes() -> list[str]:
    notes = [
        "Left, the paper's convention: filter taps of convolutions and fully connected layers, an "
        "adder tap being two additions. Right, everything that one image costs: but for LeNet-5-BN "
        "the first and the last layer stay convolutions, norms multiply and add, an XNOR layer "
        "scales its outputs. The paper's zero multiplications leave that out.",
        "The paper: for CNN and AdderNet multiplications / additions, for BNN additions / XNORs.",
        f"Cycles: {_NANO.source}. The paper prints 2.6M for LeNet-5-BN as a CNN, 1.7M as an "
        "AdderNet.",
    ]
    return notes + [f"{network.name}: {network.reason}" for network in NETWORKS]


def text(entries: list[Entry], form: Format = "table") -> str:
    """The table in one of :data:`adderize.tables.FORMATS`."""
    if form == "json":
        reasons = {network.name: network.reason for network in NETWORKS}
        return json_text([asdict(entry) | {"reason": reasons[entry.network]} for entry in entries])
    if form == "csv":
        return _csv(entries)
    table, notes = _table(entries), _notes()
    if form == "md":
        return f"{table.markdown()}\n\n{bullets(notes)}"
    return "\n".join([table.text(), "", *notes])


def _csv(entries: list[Entry]) -> str:
    views = [f"{view}.{kind}" for view in ("convention", "full") for kind in KINDS]
    rows = []
    for entry in entries:
        counts = [*entry.convention.by_kind().values(), *entry.full.by_kind().values()]
        printed = " / ".join(entry.printed) if entry.printed else ""
        rows.append([entry.network, entry.arithmetic, *counts, printed, entry.difference])
    return csv_text(["network", "arithmetic", *views, "printed", "difference"], rows)
