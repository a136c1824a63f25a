"""Small networks of every kind of structure, with adders and plausible statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adderize import AdderConv2d, adderize, recalibrate
from adderize.quantize import quantize, quantize_report

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def conv(cin: int, cout: int, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    options.setdefault("padding", 1 if kernel == 3 else 0)
    return nn.Conv2d(cin, cout, kernel, bias=False, **options)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, cout, stride=stride, groups=groups), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv(cout, cout, groups=groups), nn.BatchNorm2d(cout)
        self.act = nn.ReLU(inplace=True)
        self.down: nn.Module = nn.Identity()
        if stride > 1 or cin != cout:
            self.down = nn.Sequential(
                conv(cin, cout, 1, stride=stride, padding=0), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.act(y)


class Residual(nn.Module):
    """Stem, max pooling, residual blocks with stride and groups, average pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block, self.wide = Block(8, 8), Block(8, 16, 2, groups=4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.block(self.pool(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Branches(nn.Module):
    """Concatenation, chunks and shuffling, depthwise layers, ReLU6, negative values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = conv(3, 8), nn.BatchNorm2d(8)
        self.left = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.right = nn.Sequential(conv(8, 8, 3, dilation=2, padding=2), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(conv(16, 16, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.narrow = nn.Sequential(conv(16, 8, 1), nn.BatchNorm2d(8))
        self.part = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.Hardtanh(-0.5, 2.0))
        self.last = conv(8, 6, (3, 2), padding=(0, 1), stride=(1, 2))
        self.last_bn, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).clamp(min=-1, max=2)
        y = torch.cat([self.left(x), F.relu(self.right(x))], 1)
        y = F.max_pool2d(y, 2, ceil_mode=True)
        y = self.narrow(self.deep(y))
        kept, changed = y.chunk(2, dim=1)
        y = torch.cat([kept, self.part(changed)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        y = self.last_bn(self.last(F.dropout(y, 0.5, self.training)))
        return self.head(y.mean((2, 3)))


class Untraceable(Residual):
    """Looks at values, which no tracer can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() > -1e9) else x


def trained(
    model: nn.Module, size: tuple[int, ...] = (64, 3, 12, 12), **options: object
) -> nn.Module:
    """An adder network in evaluation mode whose norms have seen data and have their own affine."""
    model = adderize(model, init="normal", example_input=torch.zeros(2, *size[1:]), **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, AdderConv2d):
            nn.init.normal_(module.weight, std=2.0)
    recalibrate(model, [torch.randn(size)])
    return model.eval()


class Two(nn.Module):
    """A stem, two adders with norms, a head; `between` runs between the adders."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.between, self.stem, self.head = between, conv(3, 8), nn.Conv2d(8, 4, 1)
        self.a, self.na, self.b, self.nb = (
            conv(8, 8),
            nn.BatchNorm2d(8),
            conv(8, 8),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.na(self.a(F.relu(self.stem(x)))))
        return self.head(self.nb(self.b(y)))


class Outer(nn.Module):
    """What no tracer sees through."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if bool(x.sum() < 1e9) else -x)


def prepared(model: nn.Module) -> nn.Module:
    """An adder network in evaluation mode whose norms have seen :data:`X`."""
    torch.manual_seed(0)
    adderize(model, example_input=X[:2])
    return recalibrate(model, [X]).eval()


def relative_error(given: Tensor, expected: Tensor) -> float:
    assert given.shape == expected.shape and given.dtype == expected.dtype
    return float(((given - expected).square().mean().sqrt() / expected.std()).detach())


def check(model: nn.Module, *, traced: bool = True, images: Tensor = X) -> nn.Module:
    """The network in 8 bits, which computes nearly what it computes in floats."""
    quantized = quantize(model, [images])
    assert isinstance(quantized, fx.GraphModule) == traced, quantize_report(quantized).remarks
    with torch.no_grad():
        error = relative_error(quantized(images.clone()), model(images.clone()))
    assert error < 0.1
    return quantized
