"""What `model(images)` runs: arguments that are left out have their defaults."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import plan


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 1), block(8, 8), nn.Conv2d(8, 4, 1)
        self.first, self.joint, self.mask = block(8, 8), block(16, 8), block(1, 8)


class Recurrent(Base):
    def forward(self, x, state=None):
        y = self.body(self.stem(x))
        if state is None:
            state = self.first(y)
        return self.head(self.joint(torch.cat([y, state], 1)))


class Masked(Base):
    def forward(self, x, mask=None):
        y = self.body(self.stem(x))
        return self.head(y if mask is None else y * self.mask(mask))


class Flagged(Base):
    def forward(self, x, *, joint=False, scale=1.0, parts=()):
        y = self.body(self.stem(x)) * scale
        for part in parts:
            y = y + part
        return self.head(self.joint(torch.cat([y, y], 1)) if joint else y)


class Variadic(Base):
    def forward(self, *images, **options):
        y = self.body(self.stem(images[0]))
        if options.get("mask") is not None:
            y = y * self.mask(options["mask"])
        return self.head(y if len(images) == 1 else y * self.mask(images[1]))


class FirstIsOptional(Base):
    def forward(self, x=None, mask=None):
        if x is None:
            return None
        return self.head(self.body(self.stem(x)))


class Decorated(Base):
    @torch.no_grad()
    def forward(self, x, mask=None):
        return self.head(self.body(self.stem(x)) if mask is None else self.mask(mask))


@pytest.mark.parametrize("kind", [Recurrent, Masked, Flagged, Variadic, FirstIsOptional, Decorated])
def test_a_plan_describes_the_call_with_images_alone(kind):
    model, called = kind(), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(torch.randn(2, 3, 8, 8))
    rows = plan(model).rows
    assert {row.name for row in rows if not row.reason.startswith("never called")} == called
    assert {row.method for row in rows} == {"fx"}


@pytest.mark.parametrize("kind", [Masked, Variadic])
def test_an_example_says_which_arguments_are_given(kind):
    example = torch.empty(2, 3, 8, 8), torch.empty(2, 1, 8, 8)
    rows = {row.name: row for row in plan(kind(), example_input=example).rows}
    assert rows["mask.0"].reason == "stem: reads the input"
    assert rows["first.0"].reason.startswith("never called")
