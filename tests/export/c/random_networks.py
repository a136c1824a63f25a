"""Small integer networks of all kinds of layers, from a number."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, recalibrate
from adderize.integer import IntegerNetwork, to_integer
from adderize.quantize import quantize
from tests.integer.networks import COLOUR, GREY, images, normalised

Shape = tuple[int, int, int]


class Residual(nn.Module):
    """Its input is added to what its layers make of it."""

    def __init__(self, inner: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.inner, self.act = inner, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x) + x)


class Joined(nn.Module):
    """Two branches side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


class Mover(nn.Module):
    """Values in other places, or of the other sign."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.shuffle = kind, nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "shuffle":
            return self.shuffle(x)
        if self.kind == "part":
            return x[:, 1:, :, 1:]
        if self.kind == "transpose":
            return x.transpose(2, 3)
        if self.kind == "pad":
            return F.pad(x, (1, 0, 0, 2), value=0.5)
        if self.kind == "mirror":
            return 0.5 - x * 0.3
        if self.kind == "upsample":
            return F.interpolate(x, scale_factor=(2, 3))
        return F.pixel_unshuffle(x, 2)


class Draw:
    """Layers at random, for shapes that they take."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def act(self) -> nn.Module:
        acts = [nn.ReLU(), nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Hardtanh(-2, 1)]
        return self.pick([*acts, nn.LeakyReLU(0.1)])

    def conv(self, shape: Shape, *, same: bool = False) -> nn.Module:
        """Adder or kept, with a norm; of the same size if asked."""
        channels = shape[0]
        kernel = (self.pick([1, 3]), self.pick([1, 3])) if same else (self.pick([1, 2, 3]),) * 2
        dilation = self.pick([1, 1, 2])
        reach = [(size - 1) * dilation for size in kernel]
        padding = tuple(r // 2 if same else self.random.randint(0, 2) for r in reach)
        sizes = zip(shape[1:], padding, reach, strict=True)
        if any(p >= s or s + 2 * p <= r for s, p, r in sizes):
            kernel, padding = (1, 1), (0, 0)
        filters = channels if same else self.pick([4, 5, 8, 10])
        groups = self.pick([g for g in (1, 1, 2, channels) if channels % g == filters % g == 0])
        if groups == channels and not same:
            filters = channels * self.pick([1, 2])
        options: dict[str, Any] = {
            "stride": 1 if same else (self.pick([1, 2]), self.pick([1, 2])),
            "padding": padding, "dilation": dilation, "groups": groups,
            "padding_mode": self.pick(["zeros"] * 3 + ["reflect", "replicate", "circular"]),
            "bias": self.pick([True, False]),
        }  # fmt: skip
        kind = self.pick([AdderConv2d, AdderConv2d, AdderConv2d, nn.Conv2d])
        layer = kind(channels, filters, kernel, **options)
        norm = nn.BatchNorm2d(filters)
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        return nn.Sequential(layer, norm)

    def pool(self, shape: Shape) -> nn.Module:
        kernel = self.pick([2, 3])
        if min(shape[1:]) < kernel + 1:
            return nn.Identity()
        padding = self.pick([0, 1])
        if self.pick([True, False]):
            return nn.AvgPool2d(kernel, self.pick([1, 2]), padding)
        return nn.MaxPool2d(kernel, self.pick([1, 2]), padding, ceil_mode=self.pick([True, False]))

    def block(self, shape: Shape) -> nn.Module:
        channels, height, width = shape
        kind = self.pick(["plain", "plain", "residual", "joined", "pool", "mover"])
        if kind == "residual":
            return Residual(self.conv(shape, same=True), self.act())
        if kind == "joined":
            first = nn.Sequential(self.conv(shape, same=True), self.act())
            return Joined(first, self.pick([nn.Identity(), self.conv(shape, same=True)]))
        if kind == "pool":
            return self.pool(shape)
        kinds = ["transpose", "pad", "upsample", "mirror"] + ["shuffle"] * (channels % 2 == 0)
        kinds += ["part"] * (channels > 1 and width > 1)
        kinds += ["unshuffle"] * (height % 2 == width % 2 == 0)
        if kind == "mover":
            return Mover(self.pick(kinds))
        return nn.Sequential(self.conv(shape), self.act())

    def head(self, shape: Shape) -> nn.Module:
        flat: list[nn.Module] = [nn.Flatten()]
        features = shape[0] * shape[1] * shape[2]
        if self.pick([True, False]):
            flat, features = [nn.AdaptiveAvgPool2d(1), nn.Flatten()], shape[0]
        if self.pick([True, False]):
            flat += [AdderLinear(features, 9), nn.BatchNorm1d(9), nn.ReLU()]
            features = 9
        last = self.pick([AdderLinear, nn.Linear])(features, self.pick([3, 10]))
        return nn.Sequential(*flat, last)


def random_network(seed: int) -> tuple[IntegerNetwork, Tensor]:
    """A network, and images to run it on: some like those that it knows, some of noise."""
    try:
        return _drawn(seed)
    except AdderizeError:  # no adder among its layers, or a graph that is not traced
        return _drawn(seed + 1000)


def _drawn(seed: int) -> tuple[IntegerNetwork, Tensor]:
    torch.manual_seed(seed)
    draw = Draw(seed)
    size = (draw.pick([1, 3]), draw.random.randint(5, 14), draw.random.randint(5, 14))
    statistics = GREY if size[0] == 1 else COLOUR
    raw = images(12, size)
    model, example = nn.Sequential(), normalised(raw[:2], **statistics)

    def append(layer: nn.Module) -> None:
        nonlocal example
        model.append(layer)
        example = layer(example).detach()

    append(nn.Sequential(draw.conv(size), draw.act()))
    for _ in range(draw.random.randint(1, 5)):
        append(draw.block(example.shape[1:]))
    append(draw.head(example.shape[1:]))
    batch = normalised(raw, **statistics)
    recalibrate(model, [batch])
    quantized = quantize(model.eval(), [batch], bits=draw.pick([4, 8, 8]))
    network = to_integer(
        quantized, input_size=size, terms=draw.pick([1, 2, 3, 4]),
        filter_terms=draw.pick([1, 2, 3]), **statistics,
    )  # fmt: skip
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    ends = torch.stack([torch.zeros(size), torch.full(size, 255)]).byte()
    return network, torch.cat([raw[:3], noise, ends])
