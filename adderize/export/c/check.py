"""Exported networks, compiled and run beside the network in PyTorch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.export.c.report import CReport, OnCore
from adderize.export.c.riscv import (
    PACKAGES,
    RV32EC,
    RV32I,
    Core,
    build_counter,
    build_for_riscv,
    build_network,
    missing_tools,
    products_in,
    run_on_riscv,
    size_of,
)
from adderize.export.c.tools import build_for_host, host_compiler, run_on_host
from adderize.integer import IntegerNetwork


@dataclass(frozen=True)
class Comparison:
    """Logits of C beside those of PyTorch.

    Attributes:
        where: the compiler, or the core that was emulated.
        images: how many were compared.
        equal: how many have the same logits, bit for bit.
    """

    where: str
    images: int
    equal: int

    def __str__(self) -> str:
        return f"{self.where}: {self.equal} of {self.images} images have the logits of PyTorch"


def compare_on_host(network: IntegerNetwork, folder: Path, name: str, images: Tensor) -> Comparison:
    """
    Raises:
        AdderizeError: there is no C compiler, it failed, or the program did.
    """
    compiler = host_compiler()
    if compiler is None:
        raise AdderizeError(
            "there is no C compiler: install gcc or clang, or name one in the variable CC"
        )
    with tempfile.TemporaryDirectory() as scratch:
        executable = build_for_host(
            network.program, folder, name, Path(scratch) / name, compiler=compiler
        )
        found = run_on_host(executable, images)
    return _compared(Path(compiler).name, network, images, found)


def measure_on_riscv(
    network: IntegerNetwork, folder: Path, name: str, images: Tensor, core: Core = RV32I
) -> tuple[Comparison, OnCore]:
    """Runs an exported network under an emulator of a core that cannot multiply.

    Returns:
        its logits beside PyTorch's, and what an inference costs, on average over the images.

    Raises:
        AdderizeError: tools are missing; the compiler failed; the program multiplies.
    """
    missing = missing_tools()
    if missing:
        raise AdderizeError(f"{', '.join(missing)} not found: install Debian's packages {PACKAGES}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        alone = build_network(folder, name, place / "alone", core)
        products = products_in(alone)
        if products:
            raise AdderizeError(f"the program multiplies: {', '.join(sorted(set(products)))}")
        size = size_of(alone)
        executable = build_for_riscv(network.program, folder, name, place / name, core)
        counter = build_counter(place / "counter.so")
        run = run_on_riscv(executable, images, core, counter)
        idle = run_on_riscv(executable, images[:0], core, counter)
    text = f"{core.march} {core.flags[0]}"
    instructions = round((run.instructions - idle.instructions) / len(images))
    cost = OnCore(text, size.flash, size.memory, run.stack, instructions)
    return _compared(text, network, images, run.logits), cost


def measured(
    report: CReport, network: IntegerNetwork, folder: Path, images: Tensor
) -> tuple[CReport, list[Comparison]]:
    """The report with what each core needs."""
    results = [
        measure_on_riscv(network, folder, report.name, images, core) for core in (RV32I, RV32EC)
    ]
    costs = tuple(cost for _, cost in results)
    return replace(report, cores=costs), [comparison for comparison, _ in results]


def _compared(where: str, network: IntegerNetwork, images: Tensor, found: Tensor) -> Comparison:
    expected = network(images).flatten(1)
    equal = int(torch.all(expected == found, 1).sum())
    return Comparison(where, len(images), equal)
