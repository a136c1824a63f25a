"""What a compiled kernel consists of: the instructions of its inner loop, registers, spills.

The disassembler comes with Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Machine(NamedTuple):
    """The opcodes of the longest inner loop, and the registers that the kernel takes and spills."""

    loop: Counter[str]
    whole: Counter[str]
    registers: int
    spills: int


def disassemble(cubin: bytes) -> Machine:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code, labels = instructions(_run("nvdisasm", "-c", file.name))
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    registers = int(usage.partition("REG:")[2].split()[0])
    spills = sum(_opcode(text).partition(".")[0] in ("LDL", "STL") for text in code)
    return Machine(longest_loop(code, labels), _executed(code), registers, spills)


def _run(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(listing: str) -> tuple[list[str], dict[str, int]]:
    """The instructions of a listing, and which of them follow its labels."""
    found: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            found.append(instruction[1])
    return found, labels


def longest_loop(code: list[str], labels: dict[str, int]) -> Counter[str]:
    """Opcodes of the longest loop that holds no other; "|" marks absolute operands.

    What never runs is not counted: NOPs, and the loads behind the predicate !PT.
    """
    loops = []
    for end, instruction in enumerate(code):
        branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction)
        if branch and labels.get(branch[1], end + 1) < end:
            loops.append((labels[branch[1]], end))
    innermost = [
        (start, end)
        for start, end in loops
        if not any(
            other != (start, end) and start <= other[0] <= other[1] <= end for other in loops
        )
    ]
    start, end = max(innermost, key=lambda loop: loop[1] - loop[0])
    return _executed(code[start : end + 1])


def _executed(code: list[str]) -> Counter[str]:
    runs = (text for text in code if not text.startswith("@!PT "))
    return Counter(opcode for text in runs if (opcode := _opcode(text)) != "NOP")


def shared_words(loop: Counter[str]) -> int:
    """The 4-byte words that a thread reads from shared memory in one turn of the loop."""
    words = {"LDS": 1, "LDS.64": 2, "LDS.128": 4, "LDSM": 1, "LDSM.2": 2, "LDSM.4": 4}
    return sum(count * words[opcode] for opcode, count in loop.items() if opcode[:3] == "LDS")


def _opcode(instruction: str) -> str:
    """The name, with what matters here: FADD.SAT, FADD|, LDS.128, LDSM.4."""
    words = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()
    name, *parts = words[0].split(".")
    widths = dict.fromkeys(("LDS", "LDG", "STG"), ("64", "128"))
    told = {**widths, "LDSM": ("2", "4")}.get(name, ("SAT",))
    name = ".".join([name, *(part for part in parts if part in told)])
    return f"{name}|" if "|" in instruction else name
