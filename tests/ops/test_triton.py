"""The Triton kernels without a GPU: their results in the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adderize import AdderConv2d, AdderizeError
from adderize.ops import choice, reference
from adderize.ops.geometry import Geometry

pytest.importorskip("triton", reason="Triton is not installed")

from adderize.ops import triton as kernels
from adderize.ops.triton.layer import Layer
from adderize.ops.triton.tiles import chunk, columns_of, sign_splits, sign_tile, splits
from tests.ops import triton_cases
from tests.ops.triton_cases import CASES


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What a process of its own found: the interpreter is chosen when kernels are imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, triton_cases.__file__], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr
    report: dict[str, Any] = json.loads(process.stdout)
    return report


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_against_the_formulas(name: str, interpreted: dict[str, Any]) -> None:
    errors = interpreted[name]
    assert isinstance(errors, list), errors
    for what, error, limit in zip(
        ("forward", "input gradient", "filter gradient"),
        errors,
        triton_cases.tolerances(CASES[name]),
        strict=True,
    ):
        assert error < limit, f"{what}: error {error:.2g}"


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ("tiles", 8),
        ("tuned", 3),
        ("register loops", 2),
        ("parts", 10),
        ("not a number", 8),
        ("memory formats", 8),
        ("views", 9),
    ],
)
def test_interpreted_kernels(what: str, least: int, interpreted: dict[str, Any]) -> None:
    """No tile changes a bit, timed or not; what is not finite stays visible."""
    assert len(interpreted[what]) >= least
    assert [name for name, right in interpreted[what].items() if not right] == []


def test_sums_are_split_where_tiles_are_few() -> None:
    assert splits(blocks=1000, terms=4608) == 1
    assert splits(blocks=64, terms=4608) == 4
    assert splits(blocks=1, terms=4608) == 8
    assert splits(blocks=1, terms=64) == 1
    assert splits(blocks=1, terms=1) == 1


def test_sign_gradients_are_split_until_blocks_end_together() -> None:
    """Three blocks of 128 threads share each of 132 multiprocessors: 396 at once."""
    tile = sign_tile(64)
    assert tile.warps == 4
    # 256 filters of 2304 values make 144 tiles: alone they would leave most lanes idle.
    count = sign_splits(144, tile, steps=3136)
    assert 144 * count / 396 / -(-144 * count // 396) > 0.95
    assert sign_splits(396, tile, steps=3136) == 1
    assert sign_splits(1, tile, steps=16) == sign_splits(1, tile, steps=1) == 1
    assert sign_splits(1, tile, steps=10**6) == 256


@pytest.mark.parametrize(
    ("channels", "columns"),
    [(1, 4), (3, 4), (16, 16), (24, 8), (60, 64), (96, 32), (144, 32), (112, 16), (960, 64)],
)
def test_passes_over_memory_take_columns_that_waste_little(channels: int, columns: int) -> None:
    assert columns_of(channels) == columns


def test_the_input_gradient_takes_eight_filters_where_they_come_in_eights() -> None:
    assert [chunk(filters) for filters in (8, 64, 12, 4, 3)] == [8, 8, 4, 4, 4]


def test_tiles_of_signs_hold_few_filters_without_waste() -> None:
    rows = {filters: sign_tile(filters).rows for filters in (1, 16, 17, 32, 48, 64, 80, 96, 512)}
    assert rows == {1: 16, 16: 16, 17: 32, 32: 32, 48: 16, 64: 64, 80: 16, 96: 32, 512: 64}


def test_images_beyond_32_bits_are_refused() -> None:
    input = torch.empty(1, 1, 2**16, 2**16, device="meta")
    weight = torch.empty(1, 1, 3, 3, device="meta")
    with pytest.raises(AdderizeError, match="cut it into tiles"):
        Layer.of(input, weight, Geometry())


def test_cuda_is_served_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADDERIZE_BACKEND", raising=False)
    choice._triton.cache_clear()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = choice.choose("cuda", dtype)
        assert (found.name, found.module) == ("triton", kernels)
        assert found.reason.startswith("Triton ")
    assert choice.choose("cuda", torch.float64).module is reference
    monkeypatch.setenv("ADDERIZE_BACKEND", "triton")
    assert choice.choose("cuda").name == "triton"
    with pytest.raises(AdderizeError, match="float64"):
        choice.choose("cuda", torch.float64)
    monkeypatch.setenv("ADDERIZE_BACKEND", "native")
    with pytest.raises(AdderizeError, match="native cannot serve the device 'cuda'"):
        choice.choose("cuda")


@pytest.fixture
def _unknown_triton() -> Iterator[None]:
    choice._triton.cache_clear()
    choice._warn_of_slowness.cache_clear()
    yield
    choice._triton.cache_clear()
    choice._warn_of_slowness.cache_clear()


@pytest.mark.usefixtures("_unknown_triton")
@pytest.mark.parametrize("missing", ["Triton is not installed", "Triton needs a C compiler"])
def test_the_reference_serves_where_triton_cannot(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADDERIZE_BACKEND", raising=False)
    if missing == "Triton is not installed":
        monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=f"slow reference: {missing}"):
        assert choice.choose("cuda").name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.choose("cuda").name == "reference"
    monkeypatch.setenv("ADDERIZE_BACKEND", "triton")
    with pytest.raises(AdderizeError, match=missing):
        choice.choose("cuda")


class _Operands(TorchDispatchMode):
    """The dtypes that the op receives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.adderize.adder_conv2d.default:
            self.seen.append(tuple(value.dtype for value in args if isinstance(value, Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(
    torch.__version__ < (2, 7) and not torch.cuda.is_available(),
    reason="torch 2.6 aborts at fake tensors of a device that is not there",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_autocast_casts_the_operands_and_returns_float32(dtype: torch.dtype) -> None:
    """On fake tensors: what would run on a device."""
    before = torch.get_autocast_dtype("cuda")
    with FakeTensorMode(), _Operands() as operands:
        layer = AdderConv2d(8, 4, 3, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            output = layer(torch.empty(2, 8, 6, 6, device="cuda"))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
    assert operands.seen == [(dtype, dtype)]
    assert output.dtype == torch.float32
