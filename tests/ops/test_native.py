"""The native kernels, on every instruction set of the machine, against the formulas in float64."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.ops import native
from adderize.ops.geometry import Geometry
from tests.oracle import Expected, adder_conv2d, relative_error

if not native.available()[0] and not os.environ.get("ADDERIZE_REQUIRE_NATIVE"):
    pytest.skip(native.available()[1], allow_module_level=True)

CPUS: list[str] = native.info()["cpus"]  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _same_instruction_set_as_before() -> Iterator[None]:
    before = str(native.info()["cpu"])
    yield
    native.set_cpu(before)


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    native.set_cpu(request.param)
    return str(request.param)


class Case(NamedTuple):
    input: Tensor
    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def describe(self) -> str:
        shapes = tuple(self.input.shape), tuple(self.weight.shape)
        return f"{shapes}, {self.geometry}, mean {float(self.input.mean()):.3g}"


def _output_size(case: Case) -> tuple[int, int]:
    height, width = (
        (
            case.input.shape[2 + i]
            + 2 * case.padding[i]
            - case.dilation[i] * (case.weight.shape[2 + i] - 1)
            - 1
        )
        // case.stride[i]
        + 1
        for i in (0, 1)
    )
    return height, width


def _expected(case: Case, grad: Tensor, gradient: str) -> Expected:
    return adder_conv2d(
        case.input,
        case.weight,
        grad,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
        gradient=gradient,
    )


def _actual(case: Case, grad: Tensor, gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (case.input, case.weight, case.geometry)
    return (
        native.adder_conv2d(*arguments),
        native.adder_conv2d_input_gradient(grad, *arguments, gradient),
        native.adder_conv2d_weight_gradient(grad, *arguments, gradient),
    )


def _check(case: Case, gradient: str = "full", seed: int = 0, tolerance: float = 1e-5) -> None:
    """On every instruction set."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.input.shape[0], case.weight.shape[0], *_output_size(case)
    grad = torch.randn(shape, generator=generator)
    names = ("forward", "input gradient", "filter gradient")
    wanted = _expected(case, grad, gradient)
    for cpu in CPUS:
        native.set_cpu(cpu)
        for name, actual, expected in zip(
            names, _actual(case, grad, gradient), wanted, strict=True
        ):
            assert actual.shape == expected.shape
            error = relative_error(actual, expected)
            where = f"{name}, {gradient}, {cpu}, {case.describe()}"
            assert error < tolerance, f"error {error:.2g}: {where}"


def _pick(generator: random.Random) -> Case:
    groups = generator.choice([1, 1, 1, 1, 2, 3, 5, 8])
    most = 67 if groups == 1 else 18
    channels, filters = generator.randint(1, most), generator.randint(1, most)
    kernel, stride, dilation, padding = (
        (generator.randint(low, high), generator.randint(low, high))
        for low, high in ((1, 7), (1, 3), (1, 3), (0, 3))
    )
    if generator.random() < 0.4:
        kernel, stride, dilation, padding = (3, 3), (1, 1), (1, 1), (1, 1)
    if generator.random() < 0.2:
        kernel, padding = (1, 1), (0, 0)
    size = [
        max(generator.randint(1, 17), dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i])
        for i in (0, 1)
    ]
    torch.manual_seed(generator.randint(0, 2**31))
    input = torch.randn(generator.randint(0, 5), groups * channels, *size)
    input += generator.choice([0, 0, 0, 1, 10, 1000])
    weight = torch.randn(groups * filters, channels, *kernel) + generator.choice(
        [0, 0, 0, 10, 1000]
    )
    if generator.random() < 0.5:
        input = input.relu()
    return Case(
        _restride(input, generator), _restride(weight, generator), stride, padding, dilation, groups
    )


def _restride(tensor: Tensor, generator: random.Random) -> Tensor:
    """The same values in other memory: contiguous, channels_last, sliced or transposed."""
    how = generator.randint(0, 3)
    if how == 1:
        return tensor.contiguous(memory_format=torch.channels_last)
    if how == 2:
        wide = torch.full((*tensor.shape[:3], 2 * tensor.shape[3]), float("nan"))
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if how == 3:
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    return tensor


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(seed: int) -> None:
    case = _pick(random.Random(seed))
    for gradient in ("full", "sign"):
        _check(case, gradient, seed)


@pytest.mark.parametrize("channels", [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 64, 67])
def test_channel_tails(channels: int) -> None:
    _check(
        Case(torch.randn(2, channels, 5, 9), torch.randn(channels, channels, 3, 3), padding=(1, 1))
    )


@pytest.mark.parametrize("width", range(1, 35))
def test_every_tile_width(width: int) -> None:
    for filters in (7, 24):
        _check(Case(torch.randn(1, 5, 6, width), torch.randn(filters, 5, 2, 1)))
        _check(Case(torch.randn(1, filters, 6, width), torch.randn(5, filters, 2, 1)))


@pytest.mark.parametrize(
    ("stride", "dilation", "kernel"),
    list(
        itertools.product(
            [(1, 2), (2, 1), (2, 2), (3, 3)], [(1, 1), (2, 3)], [(1, 1), (2, 2), (3, 3), (5, 4)]
        )
    ),
)
@pytest.mark.parametrize("groups", [1, 32, 4])
def test_strides_and_dilations(
    stride: tuple[int, int],
    dilation: tuple[int, int],
    kernel: tuple[int, int],
    groups: int,
) -> None:
    weight = torch.randn(32, 32 // groups, *kernel)
    _check(Case(torch.randn(2, 32, 13, 14), weight, stride, (1, 2), dilation, groups))


@pytest.mark.parametrize("channels", [16, 24, 40, 67])
@pytest.mark.parametrize("per_group", [1, 2, 4, 8])
def test_depthwise_and_small_groups(channels: int, per_group: int) -> None:
    """They are read in place: every border, with strips along rows and down columns."""
    torch.manual_seed(channels)
    generator = random.Random(channels * per_group)
    channels = channels // per_group * per_group
    for kernel, padding in (((3, 3), (1, 1)), ((1, 5), (0, 2)), ((7, 2), (4, 0)), ((7, 6), (1, 2))):
        stride = generator.choice([1, 1, 2, 3]), generator.choice([1, 1, 2, 3])
        dilation = generator.choice([1, 1, 2]), generator.choice([1, 1, 2])
        size = generator.randint(0, 18) + 2 * (kernel[0] - 1) + 1, 2 * kernel[1] + 7
        weight = torch.randn(channels, per_group, *kernel)
        input = torch.randn(2, channels, *size)
        groups = channels // per_group
        for gradient in ("full", "sign"):
            _check(Case(input, weight, stride, padding, dilation, groups), gradient)


@pytest.mark.parametrize(
    ("groups", "channels", "filters"),
    [
        (42, 3, 3),
        (30, 5, 5),
        (13, 6, 4),
        (21, 7, 5),
        (40, 2, 3),
        (30, 1, 4),
        (30, 4, 1),
        (3, 70, 2),
    ],
)
@pytest.mark.parametrize("gradient", ["full", "sign"])
def test_groups_of_a_few_channels(groups: int, channels: int, filters: int, gradient: str) -> None:
    """More than a task's, whose vectors begin and end inside of groups."""
    torch.manual_seed(groups)
    input, weight = (
        torch.randn(2, groups * channels, 6, 7),
        torch.randn(groups * filters, channels, 2, 3),
    )
    _check(Case(input, weight, (1, 2), (0, 1), (2, 1), groups), gradient)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [2, 16, 40])
def test_full_filter_gradient_of_depthwise_layers(
    channels: int, layout: torch.memory_format, cpu: str
) -> None:
    """Far from zero too, with padding beyond the filter; threads change no bit."""
    torch.manual_seed(channels)
    input = (torch.randn(3, channels, 19, 17) + 1000).to(memory_format=layout)
    weight, groups = torch.randn(channels, 1, 5, 7), channels
    case = Case(input, weight, (1, 2), (6, 3), (2, 1), groups)
    grad = torch.randn(3, channels, *_output_size(case))
    arguments = (grad, input, weight, case.geometry, "full")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(native.adder_conv2d_weight_gradient(*arguments))
    finally:
        torch.set_num_threads(before)
    expected = _expected(case, grad, "full").weight_gradient
    assert relative_error(results[0], expected) < 1e-6
    if layout == torch.channels_last:  # torch sums contiguous gradients
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("n", [1, 13, 257])
def test_linear_and_whole_image_kernels(n: int) -> None:
    _check(Case(torch.randn(n, 400, 1, 1), torch.randn(84, 400, 1, 1)))
    _check(Case(torch.randn(n, 6, 5, 5), torch.randn(20, 6, 5, 5)))
    _check(Case(torch.randn(n, 400, 1, 1) + 1000, torch.randn(84, 400, 1, 1) + 1000))


@pytest.mark.parametrize(
    "offsets", [(1000, 0), (0, 1000), (1000, 1000), (10, 10), (1, 1), (-30, 30)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_offsets_lose_no_digits(offsets: tuple[int, int], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    input = (torch.randn(4, 40, 9, 8) + offsets[0]).contiguous(memory_format=layout)
    _check(Case(input, torch.randn(37, 40, 3, 3) + offsets[1], padding=(1, 1)))
    _check(Case(input, torch.randn(40, 1, 3, 3) + offsets[1], padding=(1, 1), groups=40))


@pytest.mark.parametrize("value", [3.806, 3.684, 2.159])
@pytest.mark.parametrize(("channels", "kernel"), [(28, 3), (256, 1), (512, 1)])
def test_flat_regions_lose_no_digits(channels: int, kernel: int, value: float) -> None:
    """Every addition of equal numbers rounds the same way."""
    input = torch.full((1, channels, 6, 6), value)
    _check(Case(input, torch.full((8, channels, kernel, kernel), 0.49 * value)))


@pytest.mark.parametrize("size", [64, 66])
def test_sums_of_many_taps_lose_no_digits(size: int) -> None:
    """A kernel that covers the image, and one that does not."""
    _check(Case(torch.zeros(1, 1, size, size), torch.full((16, 1, 64, 64), 0.1)))


@pytest.mark.parametrize("channels", [4608, 25088, 100352])
def test_long_sums_lose_no_digits(channels: int) -> None:
    _check(Case(torch.full((17, channels, 1, 1), 0.1), torch.full((2, channels, 1, 1), 0.05)))
    _check(Case(torch.rand(9, channels, 1, 1) + 4, torch.rand(2, channels, 1, 1) + 2))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_one_sign_lose_no_digits(groups: int) -> None:
    torch.manual_seed(0)
    _check_sums(
        Case(torch.randn(1, 4, 4, 4) + 20, torch.randn(1024, 4 // groups, 3, 3), groups=groups)
    )
    _check_sums(
        Case(torch.randn(1, 4, 90, 90) + 20, torch.randn(4, 4 // groups, 1, 1), groups=groups)
    )
    _check_sums(
        Case(torch.randn(1, 4, 1, 9000) + 20, torch.randn(4, 4 // groups, 1, 1), groups=groups)
    )
    unfinished = torch.randn(2048, 4 // groups, 1, 1)
    unfinished[0, 0, 0, 0] = float("inf")  # the kernels go term by term
    _check_sums(Case(torch.randn(1, 4, 2, 2) + 20, unfinished, groups=groups), ("full",))


def _check_sums(case: Case, gradients: tuple[str, ...] = ("full", "sign")) -> None:
    """A g of equal numbers: the sums of the kernels' own gradients grow with every term."""
    grad = torch.full((1, case.weight.shape[0], *_output_size(case)), 0.1)
    for gradient, cpu in itertools.product(gradients, CPUS):
        native.set_cpu(cpu)
        expected, arguments = _expected(case, grad, gradient), (case.input, case.weight)
        actual = native.adder_conv2d_input_gradient(grad, *arguments, case.geometry, gradient)
        assert relative_error(actual, expected.input_gradient) < 5e-6, (gradient, cpu)
        if gradient == "sign":
            actual = native.adder_conv2d_weight_gradient(grad, *arguments, case.geometry, gradient)
            assert relative_error(actual, expected.weight_gradient) < 5e-6, (gradient, cpu)


def test_long_sums_of_small_groups_lose_no_digits() -> None:
    _check(Case(torch.full((1, 1024, 5, 5), 0.1), torch.zeros(16, 512, 3, 3), groups=2), "sign")


@pytest.mark.parametrize("kernel", [(17, 17), (300, 1), (1, 300)])
def test_large_kernels(kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    input = torch.randn(1, 5, kernel[0] + 4, kernel[1] + 4)
    for gradient in ("full", "sign"):
        _check(Case(input, torch.randn(20, 5, *kernel), (2, 2), (3, 2)), gradient)


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("stride", [3, 5, 6, 7, 1_000_000])
def test_strides_longer_than_the_image(stride: int, groups: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 16 // groups, 3, 3)
    case = Case(torch.randn(2, 16, 4, 4), weight, (stride, stride), (1, 1), (1, 1), groups)
    for gradient in ("full", "sign"):
        grad = torch.randn(2, 16, *_output_size(case))
        expected = _expected(case, grad, gradient).input_gradient
        for cpu in CPUS:
            native.set_cpu(cpu)
            actual = native.adder_conv2d_input_gradient(
                grad, case.input, weight, case.geometry, gradient
            )
            assert relative_error(actual, expected) < 1e-5, (gradient, cpu)


@pytest.mark.parametrize("form", ["auto", "exact"])
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1)),
        ((5, 5), (2, 2), (1, 1)),
        ((7, 5), (3, 0), (1, 1)),
        ((9, 9), (4, 4), (1, 1)),  # more different borders than are taken apart
        ((3, 3), (2, 2), (2, 2)),
        ((3, 3), (5, 4), (1, 1)),  # some outputs see nothing but padding
        ((1, 1), (1, 2), (1, 1)),
        ((2, 4), (1, 3), (3, 1)),
    ],
)
def test_taps_in_the_padding(
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADDERIZE_FORM", form)
    torch.manual_seed(0)
    for filters, size, groups in ((33, (9, 8), 1), (16, (14, 5), 1), (48, (6, 20), 2)):
        input, weight = torch.randn(2, 36, *size), torch.randn(filters, 36 // groups, *kernel)
        for stride in ((1, 1), (2, 1), (1, 2)):
            for gradient in ("full", "sign") if form == "auto" else ("full",):
                _check(Case(input, weight, stride, padding, dilation, groups), gradient)


def test_positions_that_share_a_set_of_the_cache() -> None:
    """1024 channels apart, in a copied band of the input and of the output's gradient."""
    torch.manual_seed(0)
    _check(Case(torch.randn(1, 512, 6, 20), torch.randn(20, 512, 1, 3), (1, 2), (0, 1)))
    _check(Case(torch.randn(1, 20, 5, 20), torch.randn(1024, 20, 3, 3), padding=(1, 1)))


def test_filters_that_are_not_finite_reach_outputs_through_the_padding(cpu: str) -> None:
    """|0 - inf| is infinite, and no arithmetic is spent on it."""
    torch.manual_seed(0)
    for value in (float("nan"), float("inf"), float("-inf")):
        weight = torch.randn(32, 32, 3, 3)
        weight[4, 7, 0, 0] = value
        case = Case(torch.randn(1, 32, 8, 8), weight, padding=(1, 1))
        output = native.adder_conv2d(case.input, case.weight, case.geometry)
        assert not output[0, 4].isfinite().any()
        finite = torch.arange(32) != 4
        expected = _expected(case, torch.zeros(1, 32, 8, 8), "full").output
        assert relative_error(output[:, finite], expected[:, finite]) < 1e-5


def test_alternating_offsets_do_not_cancel_unseen() -> None:
    """The channels' offsets add up to nothing, but each of them costs digits in a sum of maxima."""
    torch.manual_seed(0)
    offset = torch.tensor([1000.0, -1000.0]).repeat(32).view(1, 64, 1, 1)
    _check(Case(torch.randn(2, 64, 9, 9) + offset, torch.randn(33, 64, 3, 3) + offset))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
@pytest.mark.parametrize("groups", [1, 20])
@pytest.mark.parametrize("where", ["input", "weight", "both"])
def test_not_finite_numbers_propagate(cpu: str, value: float, groups: int, where: str) -> None:
    torch.manual_seed(0)
    input, weight = torch.randn(2, 20, 8, 7), torch.randn(20, 20 // groups, 3, 3)
    if where in ("input", "both"):
        input[1, 3, 4, 2] = input[0, 5, 0, 0] = value
        input[0, 7, 7, 6] = value
    if where in ("weight", "both"):
        weight[3, 0, 0, 2] = weight[5, -1, 1, 1] = value
    for stride in ((1, 1), (2, 3)):
        case = Case(input, weight, stride, (1, 1), (1, 1), groups)
        grad = torch.randn(2, 20, *_output_size(case))
        for gradient in ("full", "sign"):
            actual, expected = _actual(case, grad, gradient), _expected(case, grad, gradient)
            for one, other in zip(actual[:2], expected[:2], strict=True):
                _assert_close(one, other)
            if gradient == "sign":
                _assert_close(actual[2], expected[2])


def _assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are written everywhere: memory handed out full of NaN changes nothing."""
    empty: Callable[..., Tensor] = torch.empty

    def poisoned(*arguments: object, **options: object) -> Tensor:
        tensor = empty(*arguments, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    for seed in range(100, 108):
        case = _pick(random.Random(seed))
        _check(case, "full", seed)
        _check(case, "sign", seed)


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "size"),
    [(16, 16, 1, 32), (64, 64, 1, 8), (256, 80, 1, 7), (48, 48, 48, 14), (3, 40, 1, 33)],
)
def test_threads_change_no_bit(
    cpu: str, channels: int, filters: int, groups: int, size: int
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(filters, channels // groups, 3, 3)
    case = Case(torch.randn(3, channels, size, size), weight, padding=(1, 1), groups=groups)
    grad = torch.randn(3, filters, size, size)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            arguments = (case.input, case.weight, case.geometry)
            results.append(
                (
                    native.adder_conv2d(*arguments),
                    native.adder_conv2d_input_gradient(grad, *arguments, "full"),
                    native.adder_conv2d_weight_gradient(grad, *arguments, "sign"),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_memory_formats() -> None:
    input, weight = torch.randn(2, 6, 5, 4), torch.randn(8, 6, 3, 3)
    geometry = Geometry(padding=(1, 1))
    last = input.contiguous(memory_format=torch.channels_last)
    plain, converted = (
        native.adder_conv2d(input, weight, geometry),
        native.adder_conv2d(last, weight, geometry),
    )
    assert plain.is_contiguous()
    assert converted.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, converted)
    gradient = native.adder_conv2d_input_gradient(plain, last, weight, geometry, "full")
    assert gradient.stride() == last.stride()


def test_a_write_through_data_changes_the_next_output() -> None:
    input, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 3, 3)
    geometry = Geometry()
    assert native.adder_conv2d(input, weight, geometry).abs().max() == 0
    weight.data.fill_(1.0)
    assert torch.equal(
        native.adder_conv2d(input, weight, geometry), torch.full((1, 4, 1, 1), -36.0)
    )


@pytest.mark.parametrize("form", ["fast", "exact"])
def test_the_form_can_be_forced(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDERIZE_FORM", form)
    _check(Case(torch.randn(2, 20, 9, 9), torch.randn(20, 20, 3, 3)))
    monkeypatch.setenv("ADDERIZE_FORM", "quick")
    with pytest.raises(AdderizeError, match="ADDERIZE_FORM is 'quick'; expected one of auto"):
        native.adder_conv2d(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), Geometry())


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(AdderizeError, match=r"'avx9' is not among those offered: .*portable"):
        native.set_cpu("avx9")
