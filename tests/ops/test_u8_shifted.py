"""The op on bytes with integers behind the distances, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adderize import AdderizeError
from adderize.ops.bytes import pack
from tests.ops.test_u8 import GRID, _bytes, _distances

adder_conv2d_u8_shifted = torch.ops.adderize.adder_conv2d_u8_shifted
GEOMETRY = ("stride", "padding", "dilation", "groups")


def _integers(*shape: int, most: int = 2**31 - 1) -> Tensor:
    return torch.randint(-most, most + 1, shape, dtype=torch.int64).to(torch.int32)


def _arguments(filters: int, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "factor": _integers(filters, most=4000),
        "bias": _integers(filters, most=2**24),
        "residual": None,
        "residual_factor": 0,
        "zero_point": 0,
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "fraction": 14,
        "low": 0,
        "high": 255,
        "int32_output": False,
    }
    return {**arguments, **changes}


def _expected(distances: Tensor, a: dict[str, Any]) -> Tensor:
    """In int64; the low 32 bits of a sum are those that 32-bit arithmetic gives."""
    total = distances * a["factor"].long().view(-1, 1, 1) + a["bias"].long().view(-1, 1, 1)
    if a["residual"] is not None:
        total = total + a["residual"].long() * a["residual_factor"]
    wrapped = total.to(torch.int32).long()
    return (wrapped // 2 ** a["fraction"]).clamp(a["low"], a["high"])


@pytest.mark.parametrize("case", GRID)
def test_equals_the_sum_over_the_taps(case: str, cpu: str) -> None:
    input_shape, weight_shape, changes = GRID[case]
    x, w, filters = _bytes(*input_shape), _bytes(*weight_shape), weight_shape[0]
    plain = _arguments(filters, **changes)
    distances = _distances(x, w, plain["zero_point"], *(plain[name] for name in GEOMETRY))
    packed, shape = pack(w, plain["groups"]), distances.shape
    large = {"int32_output": True, "low": -(2**31), "high": 2**31 - 1, "fraction": 3}
    for more in (
        {},
        {"low": 3, "high": 99},
        {"residual": _bytes(*shape), "residual_factor": -371},
        {"residual": _integers(*shape, most=2**20), "residual_factor": 99},
        large,
        {**large, "residual": _bytes(*shape), "residual_factor": 2**20},
        {**large, "residual": _integers(*shape), "residual_factor": -(2**31), "fraction": 0},
        {**large, "factor": _integers(filters), "bias": _integers(filters), "fraction": 31},
    ):
        arguments = {**plain, **more}
        output = adder_conv2d_u8_shifted(x, packed, [*w.shape], **arguments)
        assert output.dtype == (torch.int32 if arguments["int32_output"] else torch.uint8)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(output.long(), _expected(distances, arguments))


def test_the_reference_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = _bytes(2, 6, 8, 8), _bytes(9, 2, 3, 3)
    arguments = _arguments(9, groups=3, residual=_bytes(2, 9, 6, 6), residual_factor=5)
    wrapping = {"factor": _integers(9), "int32_output": True, "low": -(2**31), "high": 2**31 - 1}
    for more in ({}, wrapping):
        expected = adder_conv2d_u8_shifted(x, pack(w, 3), [*w.shape], **{**arguments, **more})
        with monkeypatch.context() as patch:
            patch.setenv("ADDERIZE_BACKEND", "reference")
            found = adder_conv2d_u8_shifted(x, pack(w, 3), [*w.shape], **{**arguments, **more})
        assert torch.equal(found, expected)


def test_the_shift_rounds_down_and_half_a_unit_in_the_bias_lets_ties_go_up() -> None:
    x, w = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.zeros(1, 1, 1, 1).byte()
    one, zero = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for bias, expected in ((zero, [0, 0, 1, 1, 2, 2, 3, 3]), (one, [0, 1, 1, 2, 2, 3, 3, 4])):
        arguments = _arguments(1, factor=one, bias=bias, fraction=1)
        found = adder_conv2d_u8_shifted(x, pack(w, 1), [1, 1, 1, 1], **arguments)
        assert found.flatten().tolist() == expected


BAD = {
    "input: found dtype torch.float32": {"input": torch.zeros(1, 3, 5, 5)},
    "the filters: found dtype torch.int8": {"packed": torch.zeros(216, dtype=torch.int8)},
    "are packed into": {"packed": _bytes(7)},
    "input has 2 channels": {"input": _bytes(1, 2, 5, 5)},
    "factor: found dtype torch.int64": {"factor": torch.ones(4, dtype=torch.int64)},
    r"bias: found dtype torch.int32 and shape \(3,\)": {"bias": _integers(3)},
    "residual: found dtype torch.float32": {"residual": torch.zeros(1, 4, 3, 3)},
    "residual: found shape": {"residual": _bytes(1, 4, 5, 5)},
    "zero_point is 256": {"zero_point": 256},
    "fraction is 32": {"fraction": 32},
    "low is 9 and high 3": {"low": 9, "high": 3},
    r"expected integers in \[0, 255\]": {"high": 256},
    "residual_factor is 2147483648": {"residual_factor": 2**31},
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message: str) -> None:
    w = _bytes(4, 3, 3, 3)
    good = {"input": _bytes(1, 3, 5, 5), "packed": pack(w, 1), "weight_shape": [4, 3, 3, 3]}
    with pytest.raises(AdderizeError, match=message):
        adder_conv2d_u8_shifted(**{**good, **_arguments(4), **BAD[message]})


def test_tracing_and_flops() -> None:
    x, w = _bytes(2, 6, 7, 7), _bytes(4, 3, 3, 3)
    residual = _integers(2, 4, 7, 7, most=99)
    values = _arguments(4, groups=2, padding=(1, 1), residual=residual, residual_factor=3)
    arguments = (x, pack(w, 2), [*w.shape], *values.values())
    torch.library.opcheck(adder_conv2d_u8_shifted, arguments)
    with FlopCounterMode(display=False) as counter:
        adder_conv2d_u8_shifted(*arguments)
    assert counter.get_total_flops() == 2 * 2 * 4 * 49 * 27
