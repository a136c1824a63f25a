"""Operands that are given by name are those that are given by position."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.integer import multiplication_free, to_integer
from adderize.quantize import prepare_qat, quantize
from tests.integer.networks import normalised
from tests.quantize.networks import conv, trained

MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.25, 0.3)


class Network(nn.Module):
    def __init__(self, between: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.narrow = nn.Sequential(conv(4, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.stem(x)).mean((2, 3)))


Form = Callable[[Network, Tensor], Tensor]
FORMS: dict[str, tuple[Form, Form]] = {
    "layer": (lambda n, x: n.body[0](input=x), lambda n, x: n.body[0](x)),
    "norm": (lambda n, x: n.body[1](input=n.body[0](x)), lambda n, x: n.body[1](n.body[0](x))),
    "add": (lambda n, x: torch.add(input=n.body(x), other=x), lambda n, x: n.body(x) + x),
    "add to": (lambda n, x: n.body(x).add(other=x), lambda n, x: n.body(x) + x),
    "clamp": (
        lambda n, x: n.body(torch.clamp(input=x, max=1.0)),
        lambda n, x: n.body(x.clamp(max=1.0)),
    ),
    "cat": (
        lambda n, x: n.body(torch.cat(tensors=[x, x], dim=2)),
        lambda n, x: n.body(torch.cat([x, x], 2)),
    ),
    "chunk": (
        lambda n, x: n.narrow(torch.chunk(input=x, chunks=2, dim=1)[0]),
        lambda n, x: n.narrow(x.chunk(2, 1)[0]),
    ),
    "pool": (
        lambda n, x: n.body(F.avg_pool2d(input=x, kernel_size=2)),
        lambda n, x: n.body(F.avg_pool2d(x, 2)),
    ),
    "permute": (
        lambda n, x: n.body(torch.permute(input=x, dims=(0, 1, 3, 2))),
        lambda n, x: n.body(x.permute(0, 1, 3, 2)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_give_what_positions_give(form: str) -> None:
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    images = normalised(raw, MEAN, STD)
    by_name, by_position = (Network(between) for between in FORMS[form])
    trained(by_position, (32, 3, 8, 8))
    trained(by_name, (2, 3, 8, 8)).load_state_dict(by_position.state_dict())
    results = []
    for network in (by_name, by_position):
        eight_bit = quantize(network, images)
        integers = to_integer(eight_bit, mean=MEAN, std=STD, input_size=(3, 8, 8))
        prepared = prepare_qat(network, images).eval()
        free = multiplication_free(network)
        results.append([eight_bit(images), integers(raw), prepared(images), free(images)])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
