"""The machine code of the Triton kernels, without a GPU: instructions a pair, registers, spills.

`python tests/ops/triton_sass.py [sm ...]` prints the table. The disassembler comes with Triton.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adderize.ops.triton.kernels import forward, input_gradient, sign_filter_gradient
from adderize.ops.triton.tiles import (
    CHANNELWISE,
    FORWARD,
    INPUT_GRADIENT,
    SIGN_FILTER_GRADIENT,
    Tile,
)

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Code(NamedTuple):
    """The longest loop of a kernel, and the registers that the kernel takes and spills."""

    per_pair: float
    opcodes: Counter[str]
    registers: int
    spills: int


def compile_tile(
    kernel: Any, tile: Tile, sm: int, dtype: str = "fp32", even: bool = True, **flags: Any
) -> Code:
    """A kernel of tiles; four values of the summed dimension are a turn of its loop."""
    options = {
        name: value
        for name, value in tile.options().items()
        if name.islower() and value is not None
    }
    constants = {name: value for name, value in tile.options().items() if name.isupper()}
    code = _compile(
        kernel, {**constants, "EVEN": even, "OUT_NHWC": True, **flags}, options, sm, dtype
    )
    return code._replace(
        per_pair=code.per_pair / (tile.rows * tile.columns * 4 / 32 / options["num_warps"])
    )


def compile_channelwise(kernel: Any, sm: int, dtype: str = "fp32", **flags: Any) -> Code:
    """A kernel without tiles; its loop is counted as it is."""
    constants = {name: value for name, value in CHANNELWISE.items() if name.isupper()}
    options = {name: value for name, value in CHANNELWISE.items() if name.islower()}
    return _compile(kernel, {**constants, **flags}, options, sm, dtype)


def _compile(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], sm: int, dtype: str
) -> Code:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    typed = {"x_ptr": f"*{dtype}", "dx_ptr": f"*{dtype}"}
    signature = {
        name: "constexpr"
        if name in constants
        else typed.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in names
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if name.endswith("_ptr")
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        instructions, labels = _instructions(_run("nvdisasm", "-c", file.name))
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    opcodes = _longest_loop(instructions, labels)
    registers = int(usage.partition("REG:")[2].split()[0])
    spills = sum(_opcode(text) in ("LDL", "STL") for text in instructions)
    return Code(float(opcodes.total()), opcodes, registers, spills)


def _run(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(listing: str) -> tuple[list[str], dict[str, int]]:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels


def _longest_loop(instructions: list[str], labels: dict[str, int]) -> Counter[str]:
    """Opcodes of the longest loop that holds no other, NOPs aside; "|" marks absolute operands."""
    loops = []
    for end, instruction in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction)
        if branch and labels.get(branch[1], end + 1) <= end:
            loops.append((labels[branch[1]], end))
    innermost = [
        (start, end)
        for start, end in loops
        if not any(
            other != (start, end) and start <= other[0] <= other[1] <= end for other in loops
        )
    ]
    start, end = max(innermost, key=lambda loop: loop[1] - loop[0])
    return Counter(
        opcode for text in instructions[start : end + 1] if (opcode := _opcode(text)) != "NOP"
    )


def _opcode(instruction: str) -> str:
    words = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()
    parts = words[0].split(".")
    saturates = ".SAT" if "SAT" in parts else ""
    return parts[0] + saturates + ("|" if "|" in instruction else "")


def main() -> None:
    rows = [
        ("forward", forward.forward, FORWARD, {}),
        ("input gradient", input_gradient.input_gradient, INPUT_GRADIENT, {"SIGN": False}),
    ]
    print(
        f"{'kernel':28}{'sm':>4} {'tile':>9} {'threads':>8}{'dtype':>6}"
        "  per pair  registers  spills"
    )
    for sm in map(int, sys.argv[1:] or ("80", "90", "100")):
        for name, kernel, tiles, flags in rows:
            for tile in tiles:
                _print(name, sm, tile, "fp32", compile_tile(kernel, tile, sm, **flags))
            for dtype in ("bf16", "fp16"):
                code = compile_tile(kernel, tiles[0], sm, dtype, **flags)
                _print(name, sm, tiles[0], dtype, code)
            code = compile_tile(kernel, tiles[0], sm, even=False, **flags)
            _print(f"{name}, odd channels", sm, tiles[0], "fp32", code)
        tile = INPUT_GRADIENT[0]
        code = compile_tile(input_gradient.input_gradient, tile, sm, SIGN=True)
        _print("input gradient, sign", sm, tile, "fp32", code)
        code = compile_tile(sign_filter_gradient.dense, SIGN_FILTER_GRADIENT, sm)
        _print("filter gradient, sign", sm, SIGN_FILTER_GRADIENT, "fp32", code)


def _print(name: str, sm: int, tile: Tile, dtype: str, code: Code) -> None:
    size, threads = f"{tile.rows}x{tile.columns}", tile.row_threads * tile.column_threads
    print(
        f"{name:28}{sm:>4} {size:>9} {threads:>8}{dtype:>6}  {code.per_pair:>8.2f}"
        f"  {code.registers:>9}  {code.spills:>6}",
        flush=True,
    )


if __name__ == "__main__":
    main()
