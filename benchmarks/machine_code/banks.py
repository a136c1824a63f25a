"""Shared memory in a kernel's inner loop: how its loads fall on the banks, from the TTGIR alone.

Shared memory has 32 banks of 4 bytes. A warp's load of 4 bytes a lane is served at once, one of 8
bytes in halves and one of 16 in quarters of the warp; lanes that read the same word share it. Where
lanes of one part read several words of a bank, the load takes that many turns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from benchmarks.machine_code.layouts import (
    Layout,
    Vector,
    aliases,
    combine,
    field,
    layout,
)

_BANKS, _WORD, _LANES, _WIDEST = 32, 4, 32, 16
_LOCAL_LOAD = re.compile(
    r"\.local_load .*: !\w+\.memdesc<([\dx]+)x([a-z]+\d+), (#\w+).*?> -> tensor<[\dx]+x\w+, (.*)>$"
)
_ARITHMETIC = re.compile(r"(?:arith\.subf|math\.fma) .*: tensor<(\d+x\d+x\d+x\d+)xf32, (.*)>$")


class SharedLoad(NamedTuple):
    """One tensor's load: bytes that a lane reads at once, how many loads, turns of the worst."""

    width: int
    loads: int
    ways: int


def strip_locations(ttgir: str) -> str:
    """The code without its references to source lines."""
    kept = (line for line in ttgir.splitlines() if not line.startswith("#loc"))
    return "\n".join(re.sub(r"\s*loc\((?:[^()]|\([^()]*\))*\)", "", line) for line in kept)


def inner_loop(ttgir: str) -> list[str]:
    """The lines of the innermost loop that has the most of them."""
    open_blocks: list[tuple[bool, int]] = []
    lines, longest = ttgir.splitlines(), list[str]()
    holds_loop = False
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("}") and open_blocks:
            is_loop, start = open_blocks.pop()
            if is_loop and not holds_loop and number - start > len(longest):
                longest = lines[start + 1 : number]
            holds_loop |= is_loop
        if text.endswith("{"):
            is_loop = "scf.for" in text or "scf.while" in text
            if is_loop:
                holds_loop = False
            open_blocks.append((is_loop, number))
    return longest


def accumulators(ttgir: str) -> list[Layout]:
    """The layouts of the tiles that the inner loop computes with."""
    names = aliases(ttgir)
    found = {match.groups() for line in inner_loop(ttgir) if (match := _ARITHMETIC.search(line))}
    return [layout(encoding, _shape(shape), names) for shape, encoding in sorted(found)]


def shared_loads(ttgir: str) -> list[SharedLoad]:
    """The loads from shared memory in the inner loop."""
    names = aliases(ttgir)
    loads = []
    for line in inner_loop(ttgir):
        if match := _LOCAL_LOAD.search(line):
            shape, element, memory, registers = match.groups()
            size = int(re.sub(r"\D", "", element)) // 8
            sizes = _shape(shape)
            loads.append(_simulate(layout(registers, sizes, names), sizes, size, names[memory]))
        elif ".local_load " in line:
            raise ValueError(f"a load that was not understood: {line.strip()}")
    return loads


def ways(addresses: Sequence[int], width: int) -> int:
    """The turns of a part of a warp whose lanes read `width` bytes at these addresses, at worst."""
    lanes, most = _LANES * _WORD // max(width, _WORD), 1
    for start in range(0, len(addresses), lanes):
        words: dict[int, set[int]] = defaultdict(set)
        for address in addresses[start : start + lanes]:
            for word in range(address // _WORD, (address + width - 1) // _WORD + 1):
                words[word % _BANKS].add(word)
        most = max(most, *(len(bank) for bank in words.values()))
    return most


def _shape(text: str) -> list[int]:
    return [int(size) for size in text.split("x")]


def _simulate(registers: Layout, shape: list[int], size: int, memory: str) -> SharedLoad:
    rank = len(shape)

    def address(register: int, lane: int, warp: int) -> int:
        at = tuple(
            a ^ b ^ c
            for a, b, c in zip(
                combine(registers.register, register, rank),
                combine(registers.lane, lane, rank),
                combine(registers.warp, warp, rank),
                strict=True,
            )
        )
        return _address(at, shape, size, memory)

    count, warps = 2 ** len(registers.register), 2 ** len(registers.warp)
    owned = sorted({address(register, 0, 0) for register in range(count)})
    width = _width(owned, size)
    # The registers that start a load: those whose address is a multiple of the load's width.
    starts = {
        address(register, 0, 0): register
        for register in range(count)
        if address(register, 0, 0) % width == owned[0] % width
    }
    worst = max(
        ways([address(register, lane, warp) for lane in range(_LANES)], width)
        for register in starts.values()
        for warp in range(warps)
    )
    return SharedLoad(width, len(starts), worst)


def _width(owned: list[int], size: int) -> int:
    """The bytes of the widest load that covers a lane's addresses without gaps."""
    width = _WIDEST
    while width > size:
        together = width // size
        runs = [owned[at : at + together] for at in range(0, len(owned), together)]
        if all(
            run[0] % width == 0 and run == list(range(run[0], run[0] + width, size)) for run in runs
        ):
            return width
        width //= 2
    return size


def _address(at: Vector, shape: list[int], size: int, memory: str) -> int:
    """Bytes from the start of a buffer; buffers start at multiples of all banks."""
    kind = re.match(r"#\w+\.(\w+)<", memory)
    order = field(memory, "order")
    place = list(at)
    if kind and kind[1] in ("swizzled_shared", "shared"):
        vector, per_phase, phases = (field(memory, n)[0] for n in ("vec", "perPhase", "maxPhase"))
        phase = at[order[1]] // per_phase % phases
        column = at[order[0]]
        place[order[0]] = (column // vector ^ phase) * vector + column % vector
    elif not (kind and kind[1] == "padded_shared"):
        raise ValueError(f"the memory {memory} is unknown: swizzled or padded was expected")
    offset = sum(
        place[dim] * prod(shape[inner] for inner in order[:rank]) for rank, dim in enumerate(order)
    )
    pads = re.findall(r"(\d+):\+(\d+)", memory)
    return (offset + sum(offset // int(every) * int(more) for every, more in pads)) * size
