"""The native kernels' sign filter gradient: equal numbers, extreme ones, long sums, bands."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from adderize.ops import native
from adderize.ops.geometry import Geometry
from tests.oracle import adder_conv2d, relative_error

if not native.available()[0] and not os.environ.get("ADDERIZE_REQUIRE_NATIVE"):
    pytest.skip(native.available()[1], allow_module_level=True)

CPUS: list[str] = native.info()["cpus"]  # type: ignore[assignment]
LAST = torch.channels_last


@pytest.fixture(params=CPUS, autouse=True)
def cpu(request: pytest.FixtureRequest):
    before = str(native.info()["cpu"])
    native.set_cpu(request.param)
    yield
    native.set_cpu(before)


def _results(
    input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """The kernel's gradient of the filters and the formula's in float64."""
    expected = adder_conv2d(input, weight, grad, **geometry._asdict(), gradient="sign")
    actual = native.adder_conv2d_weight_gradient(grad, input, weight, geometry, "sign")
    return actual, expected.weight_gradient


def _integers(*shape: int) -> Tensor:
    """Sums of these are exact in float32."""
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize(
    ("channels", "filters", "groups"), [(16, 32, 1), (20, 7, 1), (24, 24, 24), (12, 8, 4)]
)
@pytest.mark.parametrize("scale", [1.0, 0.1, 2.0**-140, 1e30])
def test_equal_numbers_count_as_zero(
    channels: int, filters: int, groups: int, scale: float
) -> None:
    torch.manual_seed(0)
    input = _integers(3, channels, 9, 7) * scale
    weight = _integers(filters, channels // groups, 3, 3) * scale
    input[input == 0], weight[0] = -0.0, -weight[0]  # zeros of both signs meet
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups)
    actual, expected = _results(input, weight, _integers(3, filters, 9, 7), geometry)
    assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("groups", [1, 16])
def test_neighbouring_numbers_differ(groups: int) -> None:
    """From the smallest float to the largest, each against itself and the ones beside it."""
    powers = torch.logspace(-149, 127, 139, base=2, dtype=torch.float64).float()
    numbers = torch.cat([torch.zeros(1), powers, powers.nextafter(torch.tensor(0.0))])
    numbers = torch.cat([numbers, -numbers, torch.tensor([float("inf"), -float("inf")])])
    input = numbers.expand(1, 16, 1, -1).contiguous(memory_format=LAST)
    for filters in numbers.split(16):
        weight = filters.repeat(2)[:16].view(16, 1, 1, 1).expand(16, 16 // groups, 1, 1)
        grad = _integers(1, 16, 1, len(numbers))
        actual, expected = _results(input, weight, grad, Geometry(groups=groups))
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("where", ["input", "weight", "grad"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("groups", [1, 20])
def test_not_finite_numbers_give_what_the_formula_gives(
    where: str, value: float, groups: int
) -> None:
    """A NaN has no sign, as for torch.sign; one in g reaches its whole filter."""
    torch.manual_seed(0)
    operands = {
        "input": _integers(9, 20, 8, 7),
        "weight": _integers(20, 20 // groups, 3, 3),
        "grad": _integers(9, 20, 8, 7),
    }
    operands[where][3, 0, 2, 1] = operands[where][7, -1, 0, 2] = value
    actual, expected = _results(**operands, geometry=Geometry((1, 1), (1, 1), (1, 1), groups))
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(1, 1000, 1000), (1, 1, 10**6), (10**6, 1, 1)], ids=str)
@pytest.mark.parametrize("depthwise", [False, True])
def test_long_sums_lose_no_digits(size: tuple[int, int, int], depthwise: bool) -> None:
    """Of 10^6 positions, in one row, in rows and in images."""
    torch.manual_seed(0)
    images, height, width = size
    channels, geometry = (2, Geometry(groups=2)) if depthwise else (1, Geometry())
    input = torch.randn(images, channels, height, width).contiguous(memory_format=LAST)
    weight = torch.randn(2, 1, 1, 1)
    shape = images, 2, height, width
    for grad in (torch.rand(shape), torch.full(shape, 0.1)):
        actual, expected = _results(input, weight, grad.contiguous(memory_format=LAST), geometry)
        assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("width", [1, 2, 7, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("groups", [1, 3])
def test_bands_of_every_shape(width: int, groups: int) -> None:
    """Columns, rows and whole images in a band, and images of one position."""
    torch.manual_seed(0)
    for height, images in ((1, 260), (5, 40), (60, 3)):
        images = images if height * width * images < 4000 else 1
        input, weight = _integers(images, 6, height, width), _integers(9, 6 // groups, 1, 1)
        grad = _integers(images, 9, height, width)
        actual, expected = _results(input, weight, grad, Geometry(groups=groups))
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("groups", [1, 40])
def test_threads_change_no_bit(threads: int, groups: int) -> None:
    torch.manual_seed(0)
    input, grad = torch.randn(5, 40, 12, 20), torch.randn(5, 80 if groups == 1 else 40, 12, 20)
    weight = torch.randn(grad.shape[1], 40 // groups, 3, 3)
    arguments = grad, input, weight, Geometry((1, 1), (1, 1), (1, 1), groups), "sign"
    first = native.adder_conv2d_weight_gradient(*arguments)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(native.adder_conv2d_weight_gradient(*arguments), first)
    finally:
        torch.set_num_threads(before)
