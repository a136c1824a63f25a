"""Random small networks: what C computes is what PyTorch computes, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adderize.export import export_c
from adderize.export.c.tools import (
    WARNINGS,
    as_pixels,
    build_for_host,
    network_sources,
    run_on_host,
    run_tool,
)
from tests.export.c.random_networks import random_network

SANITIZERS = {
    "gcc": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # Debian packages the libraries of clang's sanitizers apart: traps need none.
    "clang": ("-fsanitize=undefined", "-fsanitize-trap=undefined"),
}


@pytest.mark.parametrize("seed", range(24))
def test_c_computes_what_pytorch_computes(seed: int, compiler: str, tmp_path: Path) -> None:
    network, images = random_network(seed)
    export_c(network, tmp_path, name="net")
    program = build_for_host(
        network.program, tmp_path, "net", tmp_path / "host",
        compiler=compiler, flags=("-O0", "-Werror"),
    )  # fmt: skip
    assert torch.equal(run_on_host(program, images), network(images).flatten(1))


@pytest.mark.parametrize("seed", [0, 5, 12])
def test_the_order_of_bytes_does_not_matter(seed: int, tmp_path: Path) -> None:
    compiler, emulator = (shutil.which(n) for n in ("s390x-linux-gnu-gcc", "qemu-s390x"))
    if compiler is None or emulator is None:
        pytest.skip("no compiler or emulator of s390x, which is big-endian")
    network, images = random_network(seed)
    export_c(network, tmp_path, name="net")
    program = build_for_host(
        network.program, tmp_path, "net", tmp_path / "host",
        compiler=compiler, flags=("-O2", "-static", "-Werror"),
    )  # fmt: skip
    done = run_tool([emulator, program], images=as_pixels(images).numpy().tobytes())
    assert np.frombuffer(done.stdout, ">i4").tolist() == network(images).flatten().tolist()


@pytest.mark.parametrize("seed", [0, 5, 12])
def test_int_may_have_16_bits(seed: int, tmp_path: Path) -> None:
    compiler = shutil.which("avr-gcc")
    if compiler is None:
        pytest.skip("no compiler of AVR, whose int has 16 bits")
    export_c(random_network(seed)[0], tmp_path, name="net")
    for source in network_sources(tmp_path, "net"):
        command = [compiler, "-mmcu=avr51", "-Os", *WARNINGS, "-Werror", "-ffreestanding", "-c"]
        run_tool([*command, source, "-o", tmp_path / "object"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizers_find_nothing(seed: int, name: str, tmp_path: Path) -> None:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    network, images = random_network(seed)
    export_c(network, tmp_path, name="net")
    program = build_for_host(
        network.program, tmp_path, "net", tmp_path / "host",
        compiler=found, flags=("-O1", "-Werror", *SANITIZERS[name]),
    )  # fmt: skip
    assert torch.equal(run_on_host(program, images), network(images).flatten(1))
