"""Random small networks: what C computes is what PyTorch computes, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from adderize.export import export_c
from adderize.export.c.tools import build_for_host, run_on_host
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
