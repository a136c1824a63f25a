"""Lowered operations against the quantized network that they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError
from adderize.integer import IntegerNetwork, to_integer
from adderize.integer.fixed_point import Bounds
from adderize.integer.integer_layers import IntegerSumPool
from adderize.integer.pooling_rules import sum_pool_settings
from adderize.integer.program import Instruction, Slot
from adderize.quantize import quantize
from tests.integer.networks import normalised, relative_error

MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.25, 0.3)


class Network(nn.Module):
    """Two adders, two kept convolutions, and a head behind what a test puts between them."""

    def __init__(self, between: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = (
            nn.Sequential(AdderConv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            for _ in range(2)
        )
        self.kept = nn.Conv2d(8, 8, 3, padding=1)
        self.over_rows = nn.BatchNorm1d(8)
        self.pads = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.ConstantPad2d((1, 0, 2, -1), 0.5))
        self.leaky, self.slope, self.slopes = nn.LeakyReLU(0.1), nn.PReLU(), nn.PReLU(8)
        self.register_buffer("places", torch.tensor([0, 2, 4, 6]))
        self.head = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, F.relu(self.first(F.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def bytes_padded_far_outside(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network.second(x), F.pad(x, (0, 1, 1, 0), value=-20.0)[..., :-1, 1:]], 1)


def range_without_zero(network: Network, x: Tensor) -> Tensor:
    return network.kept(x.clamp(1.5, 3))


def clamped_with_ends_swapped(network: Network, x: Tensor) -> Tensor:
    """torch gives the upper end, which is the lower one here."""
    return torch.cat([network.second(x), network.kept(x).clamp(2.0, 0.5)], 1)


def clamped_below_its_range(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network.second(x), network.kept(x.clamp(1.5, 3).clamp(max=1.0))], 1)


def unlike_scales_joined(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network.second(x), network.kept(x)], 1)


def a_number_added_for_one_of_two(network: Network, x: Tensor) -> Tensor:
    y = network.kept(x)
    return torch.cat([F.relu(y + 3), network.kept(y)], 1)


def a_shifted_map_averaged_with_its_surroundings(network: Network, x: Tensor) -> Tensor:
    return F.avg_pool2d(network.kept(x) + 3, 5, 1, 2)


def a_norm_of_three_dimensions(network: Network, x: Tensor) -> Tensor:
    x = network.kept(x)[..., :8]
    rows = network.over_rows((x[:, :, 0] + x[:, :, 1]).contiguous())
    return rows.unsqueeze(2)


def a_size_that_is_asked_for(network: Network, x: Tensor) -> Tensor:
    return network.second(x).view(x.size(0), 8, x.shape[2], -1)


def channels_that_a_buffer_chooses(network: Network, x: Tensor) -> Tensor:
    return network.kept(x)[:, network.places]


def pooled_up_to_its_ends(network: Network, x: Tensor) -> Tensor:
    return torch.max_pool2d(network.kept(x), 3, 2, 0, 1, True)


def padded_by_a_layer(network: Network, x: Tensor) -> Tensor:
    return network.second(network.pads(x))


def scaled_and_shifted(network: Network, x: Tensor) -> Tensor:
    return F.relu(network.second(2 - network.kept(x - 0.25) / 4).mul_(0.7))


def bytes_scaled_for_one_of_two(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network.second(x), network.kept(F.relu(x * 0.3 - 0.2))], 1)


def bytes_of_the_other_sign(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network.second(x), network.kept(1 - x), -x], 1)


def alphas(network: Network, x: Tensor) -> Tensor:
    y = network.second(torch.rsub(network.kept(x), 2, alpha=3).sub(1, alpha=2))
    return torch.add(5, y, alpha=0.25)


def a_residual_that_is_scaled(network: Network, x: Tensor) -> Tensor:
    return F.relu(0.3 * network.second(x) + x) + 0.5 * x


def leaky(network: Network, x: Tensor) -> Tensor:
    return network.second(network.leaky(network.kept(x) - 0.2))


def leaky_far_from_zero(network: Network, x: Tensor) -> Tensor:
    """The integers for zero are large: as large as the values of x, whose unit they have."""
    return network.second(F.leaky_relu(1 - 2 * x, 0.1))


def leaky_without_a_slope(network: Network, x: Tensor) -> Tensor:
    return network.second(F.leaky_relu(network.kept(x), 0.0))


def leaky_with_a_slope_that_is_trained(network: Network, x: Tensor) -> Tensor:
    return network.slope(network.second(x) - 1) + F.leaky_relu(x - 0.5, 0.02)


def quantized_network(
    between: Callable[[Network, Tensor], Tensor], dead: int = 0
) -> tuple[Tensor, nn.Module, Tensor]:
    """Raw images, the quantized network and its logits; so many channels have a gain near 0."""
    raw = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    images = normalised(raw, MEAN, STD)
    network = Network(between)
    nn.init.uniform_(network.over_rows.weight, 0.2, 2)
    with torch.no_grad():
        network.second[1].weight[:dead] = 1e-9
        network.second[1].bias[:dead] = 2
        for _ in range(20):
            network(images)
        quantized = quantize(network.eval(), images)
        return raw, quantized, quantized(images)


def lowered(quantized: nn.Module, **options: int) -> IntegerNetwork:
    return to_integer(quantized, mean=MEAN, std=STD, input_size=(3, 12, 12), **options)


FOLLOWED = [
    bytes_padded_far_outside,
    range_without_zero,
    clamped_with_ends_swapped,
    clamped_below_its_range,
    unlike_scales_joined,
    a_number_added_for_one_of_two,
    a_shifted_map_averaged_with_its_surroundings,
    a_norm_of_three_dimensions,
    a_size_that_is_asked_for,
    channels_that_a_buffer_chooses,
    pooled_up_to_its_ends,
    padded_by_a_layer,
    scaled_and_shifted,
    bytes_scaled_for_one_of_two,
    bytes_of_the_other_sign,
    alphas,
    a_residual_that_is_scaled,
    leaky,
    leaky_far_from_zero,
    leaky_without_a_slope,
    leaky_with_a_slope_that_is_trained,
]
# What is off by more than 0.005 of the logits.
TOLERANCES = {a_number_added_for_one_of_two: 0.02, a_norm_of_three_dimensions: 0.03}


@pytest.mark.parametrize("between", FOLLOWED)
def test_integers_follow_the_quantized_network(
    between: Callable[[Network, Tensor], Tensor],
) -> None:
    raw, quantized, expected = quantized_network(between)
    integers = lowered(quantized, terms=6, filter_terms=6)
    assert torch.equal(integers(raw), integers.reference(raw))
    assert relative_error(integers, raw, expected) < TOLERANCES.get(between, 0.005)


def test_positive_factors_need_no_instruction() -> None:
    kinds = []
    for factor in (1.0, 0.3):
        torch.manual_seed(0)
        _, quantized, _ = quantized_network(lambda n, x, f=factor: n.second(n.kept(x) * f + f))
        network = lowered(quantized)
        kinds.append([step.kind for step in network.program.instructions])
    assert kinds[0] == kinds[1]
    assert "rescale" in kinds[0]  # what makes bytes of the kept layer's sums


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda network, x: network.kept(x) * 0, "mul"),
        (lambda network, x: 1 / network.kept(x), "truediv"),
        (lambda network, x: network.kept(x).div(2, rounding_mode="floor"), "div"),
        (lambda network, x: network.kept(x) * network.second(x), "mul"),
        (lambda network, x: network.slopes(network.kept(x)), "PReLU"),
    ],
)
def test_other_products_are_refused(
    between: Callable[[Network, Tensor], Tensor], name: str
) -> None:
    _, quantized, _ = quantized_network(lambda n, x: n.second(between(n, x)))
    with pytest.raises(AdderizeError, match=f"{name} has no form in integers"):
        lowered(quantized)


class Inverts(nn.Module):
    """Takes pixels between 0 and 1, and scales them itself."""

    def __init__(self, invert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.invert = invert
        self.body = Network(lambda network, x: network.second(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.invert(x))


@pytest.mark.parametrize("invert", [lambda x: 4 * x - 2, lambda x: (1 - x) / 0.5])
def test_images_may_be_scaled_by_the_network(invert: Callable[[Tensor], Tensor]) -> None:
    raw = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    network = Inverts(invert)
    with torch.no_grad():
        for _ in range(20):
            network(raw / 255)
        quantized = quantize(network.eval(), raw / 255)
        expected = quantized(raw / 255)
    statistics = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    integers = to_integer(quantized, input_size=(3, 12, 12), filter_terms=6, terms=6, **statistics)
    assert relative_error(integers, raw, expected) < 0.005
    statistics["std"] = (1.0, 0.5, 0.25)
    if float(invert(torch.ones(1))) > 0:  # each channel has a scale of its own
        to_integer(quantized, input_size=(3, 12, 12), **statistics)
    else:
        with pytest.raises(AdderizeError, match="changes the sign of an image whose channels"):
            to_integer(quantized, input_size=(3, 12, 12), **statistics)


def pooled_before_its_norm(network: Network, x: Tensor) -> Tensor:
    adder, norm = network.second
    return F.relu(norm(F.max_pool2d(adder(x), 2)))


def joined_before_a_norm(network: Network, x: Tensor) -> Tensor:
    adder, norm = network.second
    return F.relu(norm(torch.cat([adder(x), adder(x[..., 2:])], 3)))


def added_before_a_norm(network: Network, x: Tensor) -> Tensor:
    adder, norm = network.second
    return F.relu(norm(adder(x) + F.max_pool2d(adder(x), 3, 1, 1)))


@pytest.mark.parametrize(
    "between", [pooled_before_its_norm, joined_before_a_norm, added_before_a_norm]
)
def test_distances_far_from_zero_keep_their_differences(
    between: Callable[[Network, Tensor], Tensor],
) -> None:
    raw, quantized, expected = quantized_network(between)
    integers = lowered(quantized, filter_terms=6)
    # 3 terms of a scale are off by up to 2.3 %, and distances lie many deviations from zero.
    assert relative_error(integers, raw, expected) < 0.03


def test_dead_channels_take_no_bits_from_others() -> None:
    """The norm behind a kept depthwise layer scales what never varies by 1/sqrt(eps)."""

    def between(network: Network, x: Tensor) -> Tensor:
        return network.second(F.relu(network.depthwise(F.relu(network.first[1](x)))))

    raw = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    images = normalised(raw, MEAN, STD)
    network = Network(between)
    network.depthwise = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
    )
    with torch.no_grad():
        network.first[1].weight[:3] = 0
        network.first[1].bias[:3] = -1
        network.depthwise[1].bias.fill_(0.5)
        for _ in range(300):
            network(images)
    assert float(network.depthwise[1].running_var[:3].max()) < 1e-9
    quantized = quantize(network.eval(), images)
    expected = quantized(images)
    error = float((expected - network(images)).norm() / expected.norm())
    integers = lowered(quantized, terms=6, filter_terms=6)
    assert error < 0.02
    assert relative_error(integers, raw, expected) < 0.01
    (step,) = (s for s in integers.program.instructions if s.layer == "depthwise.0")
    assert step.settings["fraction"] > 15  # 12 where dead filters are scaled with the others
    assert not bool(step.tensors["signs"][:, :3].any())


def test_dead_channels_of_a_norm_take_no_bits_from_others() -> None:
    torch.manual_seed(0)
    layers = [AdderConv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(), nn.BatchNorm2d(6)]
    behind = [AdderConv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, *behind, nn.Linear(4 * 64, 3))
    raw = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    images = normalised(raw, MEAN, STD)
    with torch.no_grad():
        network[1].weight[0], network[1].bias[0] = 0, -1
        for _ in range(300):
            network(images)
        quantized = quantize(network.eval(), images)
    expected = quantized(images)
    integers = lowered(quantized, terms=6, filter_terms=6)
    assert relative_error(integers, raw, expected) < 0.02


def test_channels_of_a_norm_that_hardly_scales_give_its_bias() -> None:
    def between(network: Network, x: Tensor) -> Tensor:
        return F.relu(network.second(x))

    raw, quantized, expected = quantized_network(between, dead=4)
    integers = lowered(quantized, filter_terms=6)
    assert relative_error(integers, raw, expected) < 0.03


def test_what_surrounds_an_image_loses_the_bits_that_the_image_loses() -> None:
    kernel = (3, 3)
    settings, bounds = sum_pool_settings(Bounds.of(0, 2**28), kernel, pad=2**27)
    window = {"kernel": kernel, "stride": (1, 1), "padding": (1, 1)}
    instruction = Instruction("sum_pool", "", (0,), 1, {**window, **settings}, {})
    layer = IntegerSumPool(instruction, Slot((1, 3, 3), "int32"))
    sums = layer(torch.full((1, 1, 3, 3), 2**27, dtype=torch.int32))
    assert settings["drop"] > 0
    assert torch.equal(sums, torch.full_like(sums, 9 * 2**27 >> settings["drop"]))
    assert int(bounds.high) >= int(sums.max())


def test_classifiers_of_any_unit_keep_their_digits() -> None:
    """A power of two in the weights is one in the logits, and nothing else."""
    found = []
    for unit in (1.0, 2.0**-20, 2.0**20):
        torch.manual_seed(0)
        raw, quantized, _ = quantized_network(a_size_that_is_asked_for)
        with torch.no_grad():
            quantized.head.weight.mul_(unit)
            quantized.head.bias.mul_(unit)
        integers = lowered(quantized)
        found.append(integers.logits(raw) / unit)
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_kept_layers_that_are_not_finite_are_named(name: str, value: float) -> None:
    _, quantized, _ = quantized_network(a_size_that_is_asked_for)
    with torch.no_grad():
        quantized.head.get_parameter(name).view(-1)[0] = value
    with pytest.raises(AdderizeError, match="head: "):
        lowered(quantized)


def test_kept_layers_of_zeros_give_zeros() -> None:
    raw, quantized, _ = quantized_network(a_size_that_is_asked_for)
    with torch.no_grad():
        quantized.head.weight.zero_()
        quantized.head.bias.zero_()
    integers = lowered(quantized)
    assert not integers.logits(raw).any()


@pytest.mark.parametrize("layer", ["stem", "kept", "over_rows", "head"])
def test_hooks_are_not_lost_in_silence(layer: str) -> None:
    _, quantized, _ = quantized_network(a_norm_of_three_dimensions)
    quantized.get_submodule(layer).register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.raises(AdderizeError, match=f"{layer}: it has forward hooks"):
        lowered(quantized)


def test_norms_that_compute_something_else_are_refused() -> None:
    class Tripled(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return 3 * super().forward(input)

    _, quantized, _ = quantized_network(a_norm_of_three_dimensions)
    quantized.over_rows.__class__ = Tripled
    with pytest.raises(AdderizeError, match="over_rows: it divides by statistics"):
        lowered(quantized)


def test_the_mode_and_the_form_of_the_statistics_make_no_difference() -> None:
    raw, quantized, _ = quantized_network(a_norm_of_three_dimensions)
    networks = [
        lowered(quantized),
        lowered(quantized.train()),
        to_integer(
            quantized, mean=torch.tensor(MEAN, dtype=torch.float64), std=np.array(STD),
            input_size=torch.Size((3, 12, 12)),
        ),
    ]  # fmt: skip
    assert all(torch.equal(network(raw), networks[0](raw)) for network in networks)
    assert all(network.program.mean == MEAN for network in networks)
