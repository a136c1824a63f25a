"""Scales as shifts of integers: exact sums, proved bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from adderize import AdderizeError
from adderize.integer.fitting import Fitted, fit_epilogue, fit_product
from adderize.integer.fixed_point import LIMIT, Bounds, checked, checking
from adderize.integer.integer_layers import IntegerRescale
from adderize.integer.program import Instruction, Slot


def layer_of(fitted: Fitted) -> IntegerRescale:
    """A layer that is the epilogue alone."""
    settings = {"drop": 0, "other_drop": 0, **fitted.settings}
    limits = fitted.settings["low"], fitted.settings["high"]
    output = Slot((1,), "uint8" if limits == (0, 255) else "int32")
    return IntegerRescale(Instruction("rescale", "", (0,), 1, settings, fitted.tensors), output)


def by_hand(epilogue: IntegerRescale, sums: list[int], others: list[int] | None) -> list[int]:
    """The documented formula in Python's integers; every partial sum is looked at."""
    results = []
    for c, value in enumerate(sums):
        total = int(epilogue.bias[c % len(epilogue.bias)])
        for shift, sign in zip(epilogue.shifts.tolist(), epilogue.signs.tolist(), strict=True):
            total += (value << shift[c % len(shift)]) * sign[c % len(sign)]
            assert abs(total) <= LIMIT
        if others is not None:
            tables = (epilogue.other_shifts.tolist(), epilogue.other_signs.tolist())
            for shift, sign in zip(*tables, strict=True):
                total += (others[c] << shift) * sign
                assert abs(total) <= LIMIT
        results.append(min(max(total >> epilogue.fraction, epilogue.low), epilogue.high))
    return results


def random_case(generator: torch.Generator) -> tuple[IntegerRescale, torch.Tensor, list[int]]:
    channels = int(torch.randint(1, 9, (), generator=generator))
    farthest = torch.randint(1, 255 * 4608, (channels,), generator=generator)
    scale = torch.randn(channels, dtype=torch.float64, generator=generator) * 300 / farthest
    offset = 200 * torch.randn(channels, dtype=torch.float64, generator=generator)
    fitted = fit_epilogue(
        scale, offset, Bounds(torch.zeros_like(farthest), farthest), terms=3, low=0, high=255,
        zero=7, other=(0.37, 12.0, Bounds.of(0, 255)),
    )  # fmt: skip
    return layer_of(fitted), scale, farthest.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_the_formula_is_what_is_computed(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    epilogue, _, farthest = random_case(generator)
    for share in (0.0, 1.0, 0.3):
        sums = [int(share * value) for value in farthest]
        others = [255 if share == 1 else 3] * len(sums)
        expected = by_hand(epilogue, sums, others)
        arguments = torch.tensor([sums], dtype=torch.int32), torch.tensor([others]).byte()
        assert epilogue(*arguments).tolist() == [expected]
        with checking():
            assert epilogue(*arguments).tolist() == [expected]


@pytest.mark.parametrize("terms", [1, 2, 3, 6])
def test_results_are_near_the_affine_map(terms: int) -> None:
    scale = torch.tensor([0.01, -0.003, 0.11, 1.0], dtype=torch.float64)
    offset = torch.tensor([-20.0, 100.0, 3.5, 0.0], dtype=torch.float64)
    fitted = fit_epilogue(scale, offset, Bounds.of(0, 60_000), terms=terms, low=-5000, high=5000)
    epilogue = layer_of(fitted)
    units = 2.0**-epilogue.fraction / float(scale.abs().min())  # of the scale that is held worst
    bound = {1: 1 / 3, 2: 1 / 11, 3: 0.0233, 6: 0.0004}[terms] + units
    assert fitted.worst_error <= bound
    for value in (0, 1000, 5000, 60_000):
        exact = value * scale + offset
        found = epilogue(torch.full((1, 4), value, dtype=torch.int32))[0]
        error = (found - exact.clamp(-5000, 5000)).abs()
        assert bool((error <= 0.51 + bound * exact.abs()).all())


def test_ties_round_up() -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    bounds = Bounds.of(-9, 9)
    epilogue = layer_of(
        fit_epilogue(half, torch.zeros(1).double(), bounds, terms=1, low=-9, high=9)
    )
    sums = torch.tensor([[-3], [-1], [1], [3]], dtype=torch.int32)
    assert epilogue(sums).flatten().tolist() == [-1, 0, 1, 2]


def test_an_error_of_the_scale_turns_around_zero() -> None:
    scale, offset = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-3000.0]).double()
    bounds = Bounds.of(0, 20_000)
    epilogue = layer_of(fit_epilogue(scale, offset, bounds, terms=1, low=0, high=255, zero=128))
    assert epilogue(torch.tensor([[10_000]], dtype=torch.int32)).item() == 128


def test_a_dead_channel_gives_its_offset() -> None:
    scale, offset = torch.tensor([0.0, 1.0]).double(), torch.tensor([5.0, 0.0]).double()
    bounds = Bounds.of(0, 255)
    epilogue = layer_of(fit_epilogue(scale, offset, bounds, terms=3, low=0, high=255))
    assert epilogue(torch.tensor([[200, 9]], dtype=torch.int32)).tolist() == [[5, 9]]


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-5, 2e-5])
def test_a_nearly_dead_channel_gives_its_offset(scale: float) -> None:
    scales, offset = torch.tensor([scale, 1.0]).double(), torch.tensor([50.0, 0.0]).double()
    bounds = Bounds.of(0, 255 * 576)  # they leave too few fraction bits for the small scale
    epilogue = layer_of(fit_epilogue(scales, offset, bounds, terms=3, low=0, high=255))
    assert scale < 2.0**-epilogue.fraction
    found = epilogue(torch.tensor([[20_000, 9]], dtype=torch.int32)).tolist()
    assert found == [[round(50 + 20_000 * scale), 9]]


def test_an_error_of_the_scale_turns_around_the_middle_of_a_range_without_zero() -> None:
    scale = torch.tensor([0.3], dtype=torch.float64)
    bounds, added = Bounds.of(0, 20_000), Bounds.of(100, 200)
    for about, zero in ((128, 500), (100, -400)):
        exact = torch.tensor([about - zero - 0.3 * 10_000]).double()
        fitted = fit_epilogue(
            scale, exact, bounds, terms=1, low=0, high=255, zero=zero, about=about
        )
        assert layer_of(fitted)(torch.tensor([[10_000]], dtype=torch.int32)).item() == about
    fitted = fit_epilogue(
        scale, torch.zeros(1).double(), bounds, terms=1, low=0, high=255,
        other=(0.3, 400.0, added),
    )  # fmt: skip
    for sums, others in ((900, 150), (600, 150)):
        arguments = torch.tensor([[sums]]).int(), torch.tensor([[others]]).byte()
        # 1 term is 2^-2 for 0.3: turns around 75, where the sum gives 0, and around 150.
        expected = 0.25 * sums - 0.3 * 250
        assert layer_of(fitted)(*arguments).item() == round(expected)


def test_the_proof_is_tight_enough_to_keep_digits_at_4608_taps() -> None:
    farthest = 255 * 4608
    scale = torch.tensor([2.0**-7], dtype=torch.float64)
    bounds = Bounds.of(0, farthest)
    epilogue = layer_of(
        fit_epilogue(scale, -scale * farthest / 2, bounds, terms=3, low=0, high=255)
    )
    assert epilogue.fraction >= 15
    one_more = Fraction(farthest) * Fraction(2) ** (epilogue.fraction + 1 - 7)
    assert 2 * one_more > LIMIT  # the sum and the bias, one bit more


@pytest.mark.parametrize("scale", [math.nan, math.inf, 2.0**40])
def test_scales_that_cannot_be_held_are_refused(scale: float) -> None:
    with pytest.raises(AdderizeError, match="scale"):
        fit_epilogue(
            torch.tensor([scale]).double(), torch.zeros(1).double(), Bounds.of(0, 10**6), terms=2,
            low=0, high=255,
        )  # fmt: skip


def test_a_sum_that_leaves_32_bits_raises_when_it_is_looked_at() -> None:
    with checking(), pytest.raises(OverflowError, match="32 bits"):
        checked(torch.tensor([LIMIT + 1]))
    assert checked(torch.tensor([LIMIT, -LIMIT])).tolist() == [LIMIT, -LIMIT]


@pytest.mark.parametrize("inputs", [64, 512, 8192, 25088])
def test_inputs_and_weights_share_no_bits(inputs: int) -> None:
    """The inputs of a classifier behind adders of 4608 taps are far below what the bounds allow."""
    generator = torch.Generator().manual_seed(inputs)
    weight = (torch.rand(10, inputs, generator=generator) * 2 - 1) * inputs**-0.5
    x = (3000 * torch.randn(50, inputs, generator=generator)).long()
    unit = torch.tensor(0.7 / 3000, dtype=torch.float64)
    fitted = fit_product(
        weight, None, unit, torch.zeros(1, dtype=torch.float64), Bounds.of(-(2**22), 2**22),
        usual=1000.0, base=1.0, groups=1, pads_zeros=False, terms=3,
    )  # fmt: skip
    found = fitted.tensors["bias"].double() + torch.zeros(50, 10).double()
    for shift, sign in zip(fitted.tensors["shifts"], fitted.tensors["signs"], strict=True):
        scaled = torch.where(
            shift < 0, x[:, None] >> -shift.clamp(max=0), x[:, None] << shift.clamp(min=0)
        )
        found += (scaled * sign).sum(2)
    found *= 2.0 ** -int(str(fitted.settings["fraction"]))
    expected = x.double() @ weight.double().T * unit
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.03


def _signed(x: Tensor) -> Tensor:
    return x


def _sparse(x: Tensor) -> Tensor:
    return (x - 0.5).relu()


def _positive(x: Tensor) -> Tensor:
    return x.abs()


@pytest.mark.parametrize("size", [3, 30, 300, 100000])
@pytest.mark.parametrize("form", [_signed, torch.relu, _sparse, _positive])
def test_the_bias_never_makes_rounding_worse(form: Callable[[Tensor], Tensor], size: int) -> None:
    """Filters of one sign, whose shifts to the right lose most: the mean error with and without."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.rand(4, 100, generator=generator).double()
    x = (form(torch.randn(500, 100, generator=generator)) * size).round().long()
    zero = torch.zeros(1, dtype=torch.float64)
    fitted = fit_product(
        weight, None, torch.tensor(1.0).double(), zero,
        Bounds.of(-(2**28) if form is _signed else 0, 2**28),
        usual=float(x.double().std()), base=2.0**24, groups=1, pads_zeros=False, terms=3,
    )  # fmt: skip
    shifts, signs = (fitted.tensors[name].long() for name in ("shifts", "signs"))
    assert bool((shifts < 0).any())
    sums = torch.zeros(500, 4, dtype=torch.float64)
    for shift, sign in zip(shifts, signs, strict=True):
        sums += ((x[:, None] << 24 >> 24 - shift) * sign).sum(2)
    exact = x.double() @ (signs * 2.0 ** shifts.double()).sum(0).T
    without = (sums - exact).mean(0).abs()
    error = (sums + fitted.tensors["bias"] - exact).mean(0).abs()
    assert bool((error <= without + 1).all())


@pytest.mark.parametrize("seed", range(30))
def test_no_input_takes_a_product_beyond_its_bounds(seed: int) -> None:
    """The inputs at the ends that lead each output, and each partial sum, the furthest."""
    generator = torch.Generator().manual_seed(seed)
    low, high = ((-(2**29), 2**29), (0, 2**30), (-7, 2**20), (3, 255))[seed % 4]
    weight = torch.randn(5, 40, generator=generator) * torch.rand(5, 1, generator=generator)
    zero = torch.tensor([float(low)], dtype=torch.float64)
    fitted = fit_product(
        weight, torch.randn(5, generator=generator), torch.tensor(1.0).double() / high, zero,
        Bounds.of(low, high), usual=high / 1000, base=2.0**-10, groups=1, pads_zeros=False, terms=3,
    )  # fmt: skip
    terms = list(zip(*(fitted.tensors[n].long() for n in ("shifts", "signs")), strict=True))
    ends = torch.tensor([low, high])[:, None, None]
    parts = torch.stack(
        [
            torch.where(shift < 0, ends >> -shift.clamp(max=0), ends << shift.clamp(min=0)) * sign
            for shift, sign in terms
        ]
    )  # (T, end, output, input)
    bias = fitted.tensors["bias"].long()
    whole = parts.sum(0)
    assert int((whole.amax(0).sum(1) + bias).max()) <= int(fitted.bounds.high) <= LIMIT // 2
    assert int((whole.amin(0).sum(1) + bias).min()) >= int(fitted.bounds.low) >= -(LIMIT // 2)
    most = parts.amax(1).clamp(min=0).sum((0, 2)) + bias.clamp(min=0)
    least = parts.amin(1).clamp(max=0).sum((0, 2)) + bias.clamp(max=0)
    assert int(most.max()) <= LIMIT and int(least.min()) >= -LIMIT
    held = max(int(most.max()), -int(least.min()))
    assert held > LIMIT // 4 or fitted.settings["fraction"] == 24  # and bits are not given away
