"""What starts at zero and keeps the gradient from adders: reset, or named in the plan."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import adderize, plan
from adderize.training.adaptive_rate import adder_filters


class Scale(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class OwnNorm(nn.Module):
    """A norm of no class that torch knows, with torch's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.var((2, 3), keepdim=True) + 1).sqrt()
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class FunctionalNorm(OwnNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 2, self.weight, self.bias)


def zero_conv() -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 1)
    nn.init.zeros_(conv.weight)
    return conv


def zero_norm(norm: nn.Module) -> nn.Module:
    nn.init.zeros_(norm.weight)
    return norm


class Residual(nn.Module):
    def __init__(self, scale: nn.Module, traceable: bool = True) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.scale, self.head = nn.BatchNorm2d(4), scale, nn.Linear(4, 2)
        self.traceable = traceable

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if not self.traceable and x.shape[0] < 1:
            raise ValueError
        x = x + self.scale(self.bn(self.conv(x)).relu())
        return self.head(x.mean((2, 3)))


def without_gradient(model: nn.Module) -> list[str]:
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    filters = adder_filters(model)
    return [n for n, p in filters.items() if p.grad is None or not bool(p.grad.any())]


RESET = {
    "batch norm": lambda: zero_norm(nn.BatchNorm2d(4)),
    "group norm": lambda: zero_norm(nn.GroupNorm(2, 4)),
    "a norm of its own": lambda: OwnNorm(4),
    "a functional norm": lambda: FunctionalNorm(4),
    "EvoNorm": lambda: zero_norm(timm.layers.EvoNorm2dS0(4, groups=2)),
    "a zero convolution that is converted": zero_conv,
}
NAMED = {
    "a scalar gain": (lambda: Scale(()), "scale.gamma"),
    "by channels": (lambda: Scale((4, 1, 1)), "scale.gamma"),
}
if hasattr(timm.layers, "LayerScale2d"):  # timm 1.0.3 has none
    NAMED["LayerScale"] = (lambda: timm.layers.LayerScale2d(4, init_values=0.0), "scale.gamma")


@pytest.mark.parametrize("traceable", [True, False], ids=["fx", "hooks"])
@pytest.mark.parametrize("case", RESET)
def test_gammas_of_any_norm_start_at_one(case, traceable):
    model = Residual(RESET[case](), traceable)
    assert plan(model).remarks == ()
    assert without_gradient(adderize(model)) == []


@pytest.mark.parametrize("traceable", [True, False], ids=["fx", "hooks"])
@pytest.mark.parametrize("case", NAMED)
def test_other_zeros_are_named(case, traceable):
    build, name = NAMED[case]
    model = Residual(build(), traceable)
    planned = plan(model)
    (remark,) = planned.remarks
    assert remark.startswith(f"{name} starts at zero: no gradient reaches conv in the first step")
    assert str(planned).splitlines()[-1] == remark and planned.to_dict()["remarks"] == [remark]
    assert without_gradient(adderize(model)) == ["conv"]
    nn.init.constant_(model.scale.gamma, 0.1)
    assert plan(model).remarks == ()
    assert without_gradient(model) == []


def test_a_zero_convolution_that_stays_is_named():
    model = Residual(zero_conv())
    (remark,) = plan(model, exclude="scale").remarks
    assert remark.startswith("scale.weight starts at zero: no gradient reaches conv")
    assert without_gradient(adderize(model, exclude="scale")) == ["conv"]


def test_a_way_around_a_zero_lets_the_gradient_through():
    class Around(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(self.stem(x).relu()))
            return self.head((y + self.scale(y)).mean((2, 3)))

    model = Around(Scale(()))
    assert plan(model).remarks == ()
    assert without_gradient(adderize(model)) == []


def test_a_family_with_norms_of_its_own():
    model = timm.create_model("regnetz_c16_evos", num_classes=4)
    adderize(model)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    filters = adder_filters(model)
    assert len(filters) == 67
    assert all(bool(filter.grad.any()) for filter in filters.values())
