"""Programs: what their instructions compute, and which moves they express."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError
from adderize.integer import (
    KINDS,
    Instruction,
    IntegerNetwork,
    Program,
    ShiftReport,
    Slot,
    to_integer,
)
from adderize.integer.program_bounds import Interval, bounds_of
from adderize.quantize import quantize
from tests.integer import interpreter
from tests.integer.networks import NETWORKS, eight_bit, images, normalised

STATISTICS = {"mean": (0.4, 0.5, 0.45), "std": (0.2, 0.25, 0.3)}
SIZE = (3, 12, 12)


class Network(nn.Module):
    """An adder, a kept convolution, and between them what a test puts there."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first = nn.Sequential(AdderConv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Linear(len(between(torch.zeros(1, 8, 12, 12)).flatten()), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(F.relu(self.first(x))).flatten(1))


def lowered(between: Callable[[Tensor], Tensor]) -> tuple[IntegerNetwork, Tensor]:
    raw = torch.randint(0, 256, (4, *SIZE), dtype=torch.uint8)
    network = Network(between).train()
    batch = normalised(raw, **STATISTICS)
    network(batch)
    quantized = quantize(network.eval(), batch)
    return to_integer(quantized, input_size=SIZE, **STATISTICS), raw


def moves_of(program: Program) -> list[tuple[object, ...]]:
    return [
        tuple(step.settings[name] for name in ("offset", "sizes", "strides"))
        for step in program.instructions
        if step.kind == "move"
    ]


def is_as_documented(network: IntegerNetwork, raw: Tensor) -> bool:
    outputs = [interpreter.run(network.program, image.numpy()).tolist() for image in raw]
    return bool(network(raw).tolist() == outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_is_documented(name: str) -> None:
    model, size, statistics = NETWORKS[name]()
    network = to_integer(
        eight_bit(model, images(4, size), statistics), input_size=size, **statistics
    )
    assert is_as_documented(network, images(2, size))


def shuffled(x: Tensor) -> Tensor:
    return x.view(-1, 2, 4, 12, 12).transpose(1, 2).reshape(-1, 8, 12, 12)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (shuffled, [(0, (4, 2, 144), (144, 576, 1))]),
        (nn.ChannelShuffle(2), [(0, (4, 2, 144), (144, 576, 1))]),
        (lambda x: x[:, 1:7:2, ::2, 1:], [(145, (3, 6, 11), (288, 24, 1))]),
        (lambda x: x.permute(0, 2, 3, 1), [(0, (144, 8), (1, 144))]),
        (lambda x: F.pixel_shuffle(x, 2), [(0, (2, 12, 2, 12, 2), (576, 12, 288, 1, 144))]),
        (nn.Upsample(scale_factor=2), [(0, (96, 2, 12, 2), (12, 0, 1, 0))]),
        (nn.Upsample((36, 12), mode="nearest-exact"), [(0, (96, 3, 12), (12, 0, 1))]),
        (nn.UpsamplingNearest2d((12, 24)), [(0, (1152, 2), (1, 0))]),
        (lambda x: F.interpolate(x, (3, 24)), [(0, (24, 12, 2), (48, 1, 0))]),
        (
            lambda x: F.interpolate(F.pixel_shuffle(x, 2)[..., :1], scale_factor=3, mode="nearest"),
            [(0, (2, 12, 2, 9), (576, 12, 288, 0))],
        ),
        (lambda x: x.split(3, 1)[1], [(432, (432,), (1,))]),
        (lambda x: F.pad(x, (-1, 2, 1, 0), value=1.5), None),
        (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), [(0, (8 * 49,), (1,))]),
        (lambda x: F.max_pool2d(x, (3, 2), (2, 3), dilation=2), None),
        (lambda x: torch.cat([x.chunk(2, 1)[1], x.clamp(0.5, 9).chunk(2, 1)[0]], 1), None),
        (lambda x: x.clamp(0.2, 0.9).mean((2, 3)), None),
        (lambda x: torch.cat([x, F.pad(x, (1, 1), value=-9.0)[..., 1:-1]], 2), None),
    ],
)  # fmt: skip
def test_what_lies_between_layers(
    between: Callable[[Tensor], Tensor], expected: list[tuple[object, ...]] | None
) -> None:
    network, raw = lowered(between)
    assert is_as_documented(network, raw)
    assert torch.equal(network(raw), network.reference(raw))
    if expected is not None:
        assert moves_of(network.program)[:1] == expected
    assert {step.kind for step in network.program.instructions} <= set(KINDS)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda x: x[:, [0, 1, 2, 4]], "getitem puts values into an order without strides"),
        (lambda x: x[:, [3, 2, 1, 0]], "getitem puts values into an order without strides"),
        (lambda x: x.transpose(0, 1).reshape(-1, 8, 12, 12), "transpose mixes the images"),
        (lambda x: x.flip(1), "flip has no form in integers"),
        (nn.Upsample((18, 12)), r"makes \(18, 12\) of \(12, 12\).*expected whole factors"),
        (
            lambda x: F.interpolate(x[..., :2], (12, 3), mode="bilinear", align_corners=True),
            "interpolate has no form in integers: it weighs neighbours, mode='nearest'",
        ),
    ],
)  # fmt: skip
def test_what_no_strides_express_is_named(
    between: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(AdderizeError, match=message):
        lowered(between)


def test_slots_are_read_before_they_are_given_up() -> None:
    network, _ = lowered(shuffled)
    program, last = network.program, network.program.last_readers()
    assert last[program.output] == len(program.instructions)
    written = {program.input: -1} | {s.output: i for i, s in enumerate(program.instructions)}
    assert len(written) == len(program.slots)
    assert all(last[slot] > position for slot, position in written.items())
    assert program.slots[program.input].nbytes == 3 * 144
    names = [step.layer for step in program.instructions]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("mode", "padding", "held"),
    [
        ("constant", (0, 0, 0, 0), True),
        ("circular", (1, 0, 0, 0), True),
        ("constant", (1, 0, 0, 0), False),
    ],
)
def test_the_pad_of_a_kept_layer_counts_where_it_is_seen(
    mode: str, padding: tuple[int, ...], held: bool
) -> None:
    settings = {
        "stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1,
        "padding_mode": mode, "least": 0, "fraction": 0,
    }  # fmt: skip
    tensors = {
        "shifts": torch.full((1, 1, 1, 1, 1), 20, dtype=torch.int8),
        "signs": torch.ones(1, 1, 1, 1, 1, dtype=torch.int8),
        "bias": torch.zeros(1, dtype=torch.int32),
        "pad": torch.tensor([10**5], dtype=torch.int32),
    }
    slots = Slot((1, 2, 2), "uint8"), Slot((1, 2, 2 + sum(padding)), "int32")
    step = Instruction("shift_conv", "kept", (0,), 1, settings, tensors)
    program = Program(slots, (step,), 0, 1, (0.0,), (1.0,), 1.0, 0.0, ShiftReport(3, 3, ()))
    if held:
        assert bounds_of(program)[1] == Interval(0, 255 << 20)
        return
    with pytest.raises(AdderizeError, match="32 bits do not hold"):
        bounds_of(program)
