"""Compiles the Triton kernels for a device that need not be there."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adderize.ops.triton.tiles import Tile
from benchmarks.machine_code import banks, sass


class Code(NamedTuple):
    """What a kernel compiled to, and how its inner loop uses shared memory."""

    per_pair: float
    """Instructions of the inner loop for each pair of an input and a filter value."""
    opcodes: Counter[str]
    registers: int
    spills: int
    shared_bytes: int
    lanes: bool
    """Whether the lanes lie along the last two dimensions of the tiles, those of the threads."""
    loads: list[banks.SharedLoad]

    @property
    def ways(self) -> int:
        """The turns that the worst load from shared memory takes; 1: without conflicts."""
        return max((load.ways for load in self.loads), default=1)


def compile_tile(
    kernel: Any, tile: Tile, sm: int, dtype: str = "fp32", even: bool = True, **flags: Any
) -> Code:
    """A kernel of tiles; a turn of its loop sums POSITIONS, CHUNK or else four values."""
    options = {
        name: value
        for name, value in tile.options().items()
        if name.islower() and value is not None
    }
    constants = {name: value for name, value in tile.options().items() if name.isupper()}
    constants |= {"EVEN": even, "OUT_NHWC": True, **flags}
    code = _compile(kernel, constants, options, sm, dtype)
    pairs = tile.rows * tile.columns * constants.get("POSITIONS", constants.get("CHUNK", 4))
    return code._replace(per_pair=code.per_pair / (pairs / 32 / options["num_warps"]))


def compile_kernel(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], sm: int, dtype: str
) -> Any:
    """Triton's compiled kernel, for images of a dtype; constants that it does not take are left."""
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    typed = {
        "x_ptr": f"*{dtype}",
        "dx_ptr": f"*{dtype}",
        "parts_ptr": "*fp64",
        "totals_ptr": "*fp64",
    }
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
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def _compile(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], sm: int, dtype: str
) -> Code:
    compiled = compile_kernel(kernel, constants, options, sm, dtype)
    machine = sass.disassemble(compiled.asm["cubin"])
    ttgir = banks.strip_locations(compiled.asm["ttgir"])
    tiles = banks.accumulators(ttgir)
    return Code(
        float(machine.loop.total()),
        machine.loop,
        machine.registers,
        machine.spills,
        compiled.metadata.shared,
        bool(tiles) and all(base[:2] == (0, 0) for tile in tiles for base in tile.lane + tile.warp),
        banks.shared_loads(ttgir),
    )
