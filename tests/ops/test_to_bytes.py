"""The op that puts floats into bytes, against the formula in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from adderize import AdderizeError
from adderize.ops.bytes import to_bytes


def expected(values: Tensor, scale: float, zero_point: int, levels: int) -> list[int]:
    # A power of two: neither the product nor the sum is rounded.
    found = []
    for value in values.flatten().tolist():
        if math.isfinite(value):
            place = round(Fraction(value) / Fraction(scale)) + zero_point
        else:
            place = levels if value > 0 else 0
        found.append(min(max(place, 0), levels))
    return found


@pytest.mark.parametrize("count", [0, 1, 15, 16, 33, 1000, 70_001])
@pytest.mark.parametrize(("zero_point", "levels"), [(0, 255), (37, 255), (-3, 15), (300, 63)])
def test_formula(count: int, zero_point: int, levels: int, cpu: str) -> None:
    values = (torch.randn(count) * 40).round() / 32  # many halves of the step
    values[: count // 20] = torch.randn(count // 20) * 1e9
    for place, strange in enumerate((math.nan, math.inf, -math.inf)):
        values[place : place + 1] = strange
    for dtype in (torch.float32, torch.float64):
        given = to_bytes(values.to(dtype), 1 / 16, zero_point, levels)
        assert given.tolist() == expected(values, 1 / 16, zero_point, levels)


@pytest.mark.parametrize("scale", [0.3, 1 / 255, 1e-20])
def test_all_implementations_agree(scale: float, cpu: str) -> None:
    values = torch.randn(5000) * 100 * scale
    steps = torch.tensor(1 / scale, dtype=torch.float32)
    wanted = ((values * steps).round() + 7).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_bytes(values, scale, 7, 255), wanted)


def test_strides_are_kept(cpu: str) -> None:
    values = torch.randn(2, 5, 4, 3)
    wanted = to_bytes(values.reshape(-1), 0.1, 9, 255).view(2, 5, 4, 3)
    for image in (values, values.contiguous(memory_format=torch.channels_last)):
        given = to_bytes(image, 0.1, 9, 255)
        assert torch.equal(given, wanted) and given.stride() == image.stride()
    assert torch.equal(to_bytes(values[:, ::2], 0.1, 9, 255), wanted[:, ::2])


@pytest.mark.parametrize(
    ("values", "scale", "levels", "message"),
    [
        (torch.arange(3), 1.0, 255, "found dtype torch.int64"),
        (torch.ones(3).half(), 1.0, 255, "found dtype torch.float16"),
        (torch.ones(3), 0.0, 255, "scale is 0.0"),
        (torch.ones(3), math.inf, 255, "scale is inf"),
        (torch.ones(3), 1.0, 256, "levels 256"),
    ],
)
def test_errors(values: Tensor, scale: float, levels: int, message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        to_bytes(values, scale, 0, levels)


def test_tracing() -> None:
    values = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.adderize.to_bytes, (values, 0.1, 3, 255))
    torch.library.opcheck(torch.ops.adderize.to_bytes, (values[..., ::2], 0.1, 3, 255))
