"""Cores without a multiplier: what is compiled for them, and what they compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from adderize import AdderizeError
from adderize.export import export_c
from adderize.export.c.check import measure_on_riscv
from adderize.export.c.riscv import (
    RV32EC,
    RV32I,
    Core,
    compile_for,
    counted_instructions,
    products_in,
)
from adderize.export.c.tools import SOURCES, run_tool
from adderize.integer import to_integer
from tests.export.c.random_networks import random_network
from tests.integer.networks import eight_bit, images, segments

CORES = [RV32I, Core("rv32i", "ilp32", ("-Os",)), Core("rv32i", "ilp32", ("-O3",)), RV32EC]
WITH_MULTIPLIER = Core("rv32im", "ilp32", emulated="rv32")
PROGRAM = """
  .globl _start
_start:
  li t0, {count}
1:
  addi t0, t0, -1
  bnez t0, 1b
  {last}
  li a0, 0
  li a7, 93
  ecall
"""


def assembled(folder: Path, core: Core, count: int = 1, last: str = "nop") -> Path:
    source = folder / "program.S"
    source.write_text(PROGRAM.format(count=count, last=last))
    return compile_for(core, [source], folder / "program")


def undefined_in(binary: Path) -> list[str]:
    """What an object file calls and does not hold."""
    command = ["riscv64-unknown-elf-nm", "--undefined-only", "--format=posix", binary]
    return [line.split()[0] for line in run_tool(command).stdout.decode().splitlines()]


def executed(program: Path, counter: Path, emulated: str) -> int:
    command = ["qemu-riscv32", "-cpu", emulated, "-plugin", counter, program]
    return counted_instructions(run_tool(command).stderr)


@pytest.mark.usefixtures("riscv")
@pytest.mark.parametrize("core", CORES, ids=lambda core: f"{core.march} {core.flags[0]}")
def test_no_layer_multiplies_or_calls_a_library(core: Core, tmp_path: Path) -> None:
    source = Path(str(SOURCES / "adderize_layers.c"))
    layers = compile_for(core, [source], tmp_path / "layers.o", ["-c"])
    assert not products_in(layers)
    assert not undefined_in(layers)


@pytest.mark.usefixtures("riscv")
def test_products_are_found_and_trap(tmp_path: Path, counter: Path) -> None:
    program = assembled(tmp_path, WITH_MULTIPLIER, last="mul t0, t0, t0")
    assert products_in(program) == ["mul"]
    executed(program, counter, "rv32")
    with pytest.raises(AdderizeError, match=r"failed \(-4\)"):
        executed(program, counter, RV32I.emulated)


@pytest.mark.usefixtures("riscv")
def test_calls_of_a_library_are_found(tmp_path: Path) -> None:
    source = tmp_path / "product.c"
    source.write_text("int product(int a, int b);\nint product(int a, int b) { return a * b; }\n")
    product = compile_for(RV32I, [source], tmp_path / "product.o", ["-c"])
    assert undefined_in(product) == ["__mulsi3"]
    with pytest.raises(AdderizeError, match="__mulsi3"):
        compile_for(RV32I, [source], tmp_path / "product", ["-Wl,--entry=product"])


@pytest.mark.parametrize("count", [1, 1000])
def test_instructions_are_counted_exactly(count: int, tmp_path: Path, counter: Path) -> None:
    program = assembled(tmp_path, RV32I, count)
    assert executed(program, counter, RV32I.emulated) == 1 + 2 * count + 1 + 3


@pytest.mark.usefixtures("counter")
@pytest.mark.parametrize("core", [RV32I, RV32EC], ids=lambda core: core.march)
def test_networks_compute_what_pytorch_computes(core: Core, tmp_path: Path) -> None:
    for seed in range(3):
        network, some = random_network(seed)
        report = export_c(network, tmp_path, name="net")
        comparison, cost = measure_on_riscv(network, tmp_path, "net", some[:4], core)
        assert comparison.equal == comparison.images == 4
        assert cost.memory == report.arena and report.constants < cost.flash
        assert 0 < cost.stack < 512
        assert cost.instructions > report.additions


@pytest.mark.usefixtures("counter")
def test_upsampling_needs_no_table_of_places(tmp_path: Path) -> None:
    model, size, statistics = segments()
    network = to_integer(eight_bit(model, images(4, size), statistics), **statistics)
    report = export_c(network, tmp_path, name="net")
    comparison, _ = measure_on_riscv(network, tmp_path, "net", images(4, size), RV32I)
    assert comparison.equal == comparison.images == 4
    assert "move_values" in (tmp_path / "net.c").read_text()
    assert "logits: 3 x 12 x 8 of them" in (tmp_path / "net.h").read_text().replace("\n *", "")
    filters = sum(
        tensor.nbytes for step in network.program.instructions for tensor in step.tensors.values()
    )
    assert report.constants < filters


@pytest.mark.usefixtures("riscv")
def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network, some = random_network(0)
    export_c(network, tmp_path, name="net")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdderizeError, match="qemu-riscv32 not found: install Debian's packages"):
        measure_on_riscv(network, tmp_path, "net", some)
