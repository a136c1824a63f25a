"""A small trained-looking adder network, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adderize import adderize, recalibrate
from adderize.models import lenet5_bn


def images() -> Tensor:
    return torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def settled_lenet() -> nn.Module:
    """Five adders, the first two with few filter values outside their inputs."""
    model = adderize(lenet5_bn(), stem=True, linear=True, head=True, init="normal")
    return recalibrate(model, [images()]).eval()


HOSTILE = "</script><script>alert(1)</script>\"'<b>&$x_$"


class Hostile(nn.Module):
    """A layer whose name would break a page, a formula and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.add_module(HOSTILE, nn.Conv2d(4, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(getattr(self, HOSTILE)(self.stem(x))).relu())
