"""RISC-V cores without a multiplier: compiled for them, and run by an emulator."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.export.c.tools import (
    SOURCES,
    WARNINGS,
    as_logits,
    as_pixels,
    host_compiler,
    network_sources,
    run_tool,
    stream_options,
)
from adderize.integer.program import Program

_PREFIX = "riscv64-unknown-elf-"
_EMULATOR = "qemu-riscv32"
PACKAGES = "gcc-riscv64-unknown-elf and qemu-user"
_PRODUCTS = re.compile(r"^(mul|div|rem)|^f[a-z]+\.[sd]$")


@dataclass(frozen=True)
class Core:
    """A core to compile for.

    Attributes:
        march, mabi: the compiler's names of its instructions and its calls.
        flags: of the compiler.
        emulated: what the emulator calls it; without multiplications, one is an illegal
            instruction.
    """

    march: str
    mabi: str
    flags: tuple[str, ...] = ("-O2",)
    emulated: str = "rv32,m=false"

    @property
    def options(self) -> list[str]:
        return [
            f"-march={self.march}", f"-mabi={self.mabi}", *self.flags, "-ffreestanding",
            "-nostdlib", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections",
        ]  # fmt: skip


RV32I = Core("rv32i", "ilp32")
RV32EC = Core("rv32ec", "ilp32e", ("-Os",))


@dataclass(frozen=True)
class Run:
    """What a core did.

    Attributes:
        logits: int32 (N, outputs).
        stack: the most bytes that an inference used.
        instructions: of all images together, with reading them and writing logits.
    """

    logits: Tensor
    stack: int
    instructions: int


def missing_tools() -> list[str]:
    """What is not there of the compiler and the emulator."""
    names = (f"{_PREFIX}gcc", f"{_PREFIX}objdump", f"{_PREFIX}size", _EMULATOR)
    return [name for name in names if shutil.which(name) is None]


def compile_for(
    core: Core, sources: Sequence[Path], executable: Path, options: Sequence[str] = ()
) -> Path:
    """
    Raises:
        AdderizeError: the compiler failed: also where something is called that is not there, such
            as a multiplication of the compiler's library.
    """
    run_tool([f"{_PREFIX}gcc", *core.options, *WARNINGS, *sources, *options, "-o", executable])
    return executable


def build_for_riscv(
    program: Program,
    folder: Path,
    name: str,
    executable: Path,
    core: Core = RV32I,
    libraries: Sequence[str] = (),
) -> Path:
    """A program that runs an exported network on images of a stream, by default without any
    library."""
    with resources.as_file(SOURCES) as sources:
        stream = [sources / "stream_riscv.c", sources / "stream_riscv.S"]
        options = [*stream_options(program, name), *libraries]
        return compile_for(core, [*network_sources(folder, name), *stream], executable, options)


def build_network(folder: Path, name: str, executable: Path, core: Core) -> Path:
    """The network alone, for its size."""
    entry = f"-Wl,--entry={name}_run"
    return compile_for(core, network_sources(folder, name), executable, [entry])


def products_in(binary: Path) -> list[str]:
    """The instructions that multiply, divide or compute with floats."""
    listing = run_tool([f"{_PREFIX}objdump", "-d", "--no-show-raw-insn", binary])
    words = (line.split()[1:2] for line in listing.stdout.decode().splitlines() if ":\t" in line)
    return [word[0] for word in words if word and _PRODUCTS.match(word[0])]


@dataclass(frozen=True)
class Size:
    """Bytes of a program: what it holds for good, and what it writes to beside the stack."""

    flash: int
    memory: int


def size_of(executable: Path) -> Size:
    table = run_tool([f"{_PREFIX}size", executable]).stdout.decode().splitlines()
    text, data, bss = map(int, table[1].split()[:3])
    return Size(text + data, data + bss)


def build_counter(plugin: Path) -> Path:
    """The emulator's plugin that counts instructions."""
    compiler = host_compiler()
    if compiler is None:
        raise AdderizeError("counting instructions needs a C compiler for this machine")
    with resources.as_file(SOURCES / "count_instructions.c") as source:
        run_tool([compiler, "-O2", "-shared", "-fPIC", source, "-o", plugin])
    return plugin


def counted_instructions(said: bytes) -> int:
    """How many instructions a program executed, by what the emulator's plugin says at its end."""
    counted = re.search(rb"instructions: (\d+)", said)
    if counted is None:
        raise AdderizeError("the emulator counted no instructions: it was built without plugins")
    return int(counted[1])


def run_on_riscv(executable: Path, images: Tensor, core: Core, counter: Path) -> Run:
    """Runs a program of :func:`build_for_riscv` under the emulator.

    Args:
        images: uint8 (N, C, H, W).
        counter: from :func:`build_counter`.

    Raises:
        AdderizeError: it did not end well: an instruction that the core lacks ends a program.
    """
    command: list[str | Path] = [_EMULATOR, "-cpu", core.emulated, "-plugin", counter, executable]
    done = run_tool(command, images=as_pixels(images).numpy().tobytes())
    stack = int(np.frombuffer(done.stderr[:4], "<i4")[0])
    return Run(as_logits(done.stdout, len(images)), stack, counted_instructions(done.stderr[4:]))
