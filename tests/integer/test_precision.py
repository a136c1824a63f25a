"""Estimates of what rounding takes of usual values, against the networks' results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError
from adderize.integer import IntegerNetwork, to_integer
from adderize.integer.precision import Precision, usual_of
from adderize.layers.powers_of_two import rounded_to_powers
from adderize.quantize import quantize
from adderize.quantize.record import quantization_of
from tests.integer.networks import normalised

MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.25, 0.3)
TERMS = 4


def chain(kept: int, channels: int, *, bytes_after: int = 0) -> tuple[Tensor, nn.Module, Tensor]:
    """Raw images, a quantized network with so many kept convolutions behind an adder, and a kept
    classifier, and its logits; an adder may come between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for index in range(kept + 1):
        adds = index in (0, bytes_after)
        kind = AdderConv2d if adds else nn.Conv2d
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        layers.append(kind(channels, channels, 3, padding=1, bias=False))
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(channels, 10))
    raw = torch.randint(0, 256, (16, 3, 4, 4), dtype=torch.uint8)
    raw = raw.repeat_interleave(3, 2).repeat_interleave(3, 3)
    images = normalised(raw, MEAN, STD)
    with torch.no_grad():
        for _ in range(40):
            network(images)
        quantized = quantize(network.eval(), images)
        rounded = copy.deepcopy(quantized)
        for layer in rounded.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.copy_(rounded_to_powers(layer.weight, TERMS))
        return raw, quantized, rounded(images)


def integers_of(quantized: nn.Module) -> IntegerNetwork:
    return to_integer(
        quantized, mean=MEAN, std=STD, input_size=(3, 12, 12), terms=TERMS, filter_terms=TERMS
    )


def error_of(network: IntegerNetwork, raw: Tensor, expected: Tensor) -> float:
    deviation = (expected - expected.mean(0)).std()
    return float((network.logits(raw) - expected).std() / deviation)


@pytest.mark.parametrize(
    ("kept", "channels", "bytes_after"), [(1, 16, 0), (4, 16, 0), (9, 8, 0), (6, 8, 3)]
)
def test_kept_layers_in_a_row_keep_their_digits(kept: int, channels: int, bytes_after: int) -> None:
    raw, quantized, expected = chain(kept, channels, bytes_after=bytes_after)
    assert error_of(integers_of(quantized), raw, expected) < 0.05


def test_between_kept_layers_values_end_at_twice_what_they_were() -> None:
    """The ReLUs do it; behind the mean, which clamps nothing, is one more clamp."""
    raw, quantized, _ = chain(3, 8)
    network = integers_of(quantized)
    steps = [step for step in network.program.instructions if step.kind == "clamp"]
    assert [step.layer for step in steps] == ["8", "11", "14", "16_1"]
    values, ends = network.values(raw), [step.settings["high"] for step in steps]
    largest = [int(values[step.output].max()) for step in steps]
    assert all(1.9 < ends[i] / largest[i] < 2.1 for i in (0, 1)), "14 feeds the mean alone"
    extremes = 255 * torch.randint(0, 2, raw.shape, dtype=torch.uint8)
    assert torch.equal(network(extremes), network.reference(extremes))


@pytest.mark.parametrize(("kept", "channels", "most"), [(4, 16, 5), (5, 8, 6), (9, 8, 6)])
def test_without_their_ranges_kept_layers_in_a_row_that_leave_too_little_are_named(
    kept: int, channels: int, most: int
) -> None:
    """The classifier is one of them; their numbers in the network begin at 6."""
    _, quantized, _ = chain(kept, channels)
    record = quantization_of(quantized)
    assert record is not None
    record.kept_inputs.clear()  # as in folders of earlier versions
    found = rf"\d+: usual values are about 0\.\d+ units; .* \({most} in a row here\)"
    with pytest.raises(AdderizeError, match=found):
        integers_of(quantized)


def test_without_their_ranges_a_few_kept_layers_in_a_row_keep_their_digits() -> None:
    raw, quantized, expected = chain(2, 16)
    record = quantization_of(quantized)
    assert record is not None
    record.kept_inputs.clear()
    assert error_of(integers_of(quantized), raw, expected) < 0.15


def test_behind_relus_and_means_deviations_are_those_of_samples() -> None:
    samples, noise = torch.randn(2, 2**16, generator=torch.Generator().manual_seed(0)).double()
    errors = torch.where(samples > 0, noise, 0.0)
    found = Precision(3.0, 0.1).rectified()
    assert found.usual == pytest.approx(3 * float(samples.relu().std()), rel=0.02)
    assert found.error == pytest.approx(0.1 * float(errors.square().mean().sqrt()), rel=0.02)
    rounded = (samples * 20 - (samples * 20).round()).view(-1, 16)
    found = Precision(1.0).rounded(1.0).averaged(16)
    assert found.error == pytest.approx(float(rounded.mean(1).std()), rel=0.05)
    assert found.usual == 1 / 2
    assert Precision(2.0, 0.1, 3).within(1.0) == Precision(0.5, 0.025, 3)
    assert Precision(2.0, 0.1).within(0.0) == Precision(0.0)
    Precision(0.0, 0.1).check()  # dead layers have nothing to lose


def test_channels_that_say_nothing_do_not_decide_what_is_usual() -> None:
    assert usual_of(torch.tensor([1.0, -2.0, 3.0, 316.0])) == pytest.approx((78 / 4) ** 0.5)
    assert usual_of(torch.tensor([1e-9, 0.0, 0.0, 2.0])) == 2.0
    assert usual_of(torch.zeros(3)) == 0.0
