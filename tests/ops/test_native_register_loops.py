"""Register loops compute what they say, as often as they say: never how fast."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from adderize.errors import AdderizeError
from adderize.ops import native
from adderize.ops.native.register_loops import LOOPS, MOST_ROUNDS, register_loop

if not native.available()[0] and not os.environ.get("ADDERIZE_REQUIRE_NATIVE"):
    pytest.skip(native.available()[1], allow_module_level=True)

CPUS: list[str] = native.info()["cpus"]  # type: ignore[assignment]
TERMS = {
    "multiply": lambda x, f, g: x * f,
    "maxima": lambda x, f, g: max(x, f),
    "clip": lambda x, f, g: g * min(max(f - x, -1), 1),
    "sign": lambda x, f, g: g * ((x > f) - (x < f)),
    "bytes": lambda x, f, g: abs(x - f),
}
# Sums side by side, and numbers in each, as one reads them in the loop of the disassembled library.
SUMS = {
    "avx512": {"multiply": 16, "maxima": 16, "clip": 14, "sign": 8, "bytes": 12},
    "avx2": {"multiply": 12, "maxima": 12, "clip": 6, "sign": 6, "bytes": 6},
    "portable": {"multiply": 12, "maxima": 12, "clip": 6, "sign": 4, "bytes": 2},
}
LANES = {"avx512": 16, "avx2": 8, "portable": 4}
BLOCK = 64  # pairs of bytes: 8 channels, 8 taps


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    cpu, threads = str(native.info()["cpu"]), torch.get_num_threads()
    yield
    native.set_cpu(cpu)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("loop", LOOPS)
def test_terms_and_their_number(cpu: str, loop: str) -> None:
    native.set_cpu(cpu)
    numbers = BLOCK if loop == "bytes" else LANES[cpu]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for operands in ((1, 3, 2), (3, 1, 2), (2, 2, 1), (200, 7, 1)):
            pairs, total = register_loop(loop, 1000, operands)
            assert pairs == threads * 1000 * SUMS[cpu][loop] * numbers
            assert total == pairs * TERMS[loop](*operands)


@pytest.mark.parametrize("cpu", CPUS)
def test_the_longest_loop_overflows_no_sum_of_bytes(cpu: str) -> None:
    native.set_cpu(cpu)
    pairs, total = register_loop("bytes", MOST_ROUNDS // (1 if cpu == "avx512" else 8), (0, 255, 0))
    assert total == pairs * 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("divide",), "expected one of multiply, maxima"),
        (("clip", 0), "refused its arguments"),
        (("clip", MOST_ROUNDS + 1), "refused its arguments"),
        (("bytes", 1, (0.5, 1, 0)), "refused its arguments"),
        (("bytes", 1, (0, 256, 0)), "refused its arguments"),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        register_loop(*arguments)  # type: ignore[arg-type]
