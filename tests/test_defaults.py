"""Nothing depends on torch's default device or default dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adderize import adderize, binarize, count, plan, recalibrate, scale_adder_gradients_
from adderize.checkpoints import load_model, save_model
from adderize.inspection import inspect
from adderize.quantize import quantize


@contextmanager
def _defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _network() -> nn.Sequential:
    """float32 and on the CPU, whatever the defaults."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    return net.requires_grad_()


def _images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def _trained(net: nn.Module, images: Tensor) -> Tensor:
    net.train()(images).square().sum().backward()
    scale_adder_gradients_(net, 0.2)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def _counts(net: nn.Module, images: Tensor) -> Tensor:
    budget = count(net, tuple(images.shape[1:]))
    numbers = [*budget.before.by_kind().values(), *budget.after.by_kind().values()]
    return torch.tensor(numbers, device="cpu", dtype=torch.int64)


def _inspected(net: nn.Module, images: Tensor) -> Tensor:
    rows = inspect(recalibrate(adderize(net), [images]), images).layers
    return torch.tensor([row.output_std for row in rows], device="cpu", dtype=torch.float64)


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "adderize": lambda net, x: recalibrate(adderize(net), [x]).eval()(x),
    "normal filters": lambda net, x: adderize(net, init="keep").eval()(x),
    "binarize": lambda net, x: recalibrate(binarize(net), [x]).eval()(x),
    "train": lambda net, x: _trained(adderize(net), x),
    "count": _counts,
    "inspect": _inspected,
    **{
        f"quantize, {method}": lambda net, x, method=method: quantize(
            recalibrate(adderize(net), [x]).eval(), [x], method=method
        )(x)
        for method in ("minmax", "percentile", "mse")
    },
}


@cache
def _expected(call: str) -> Tensor:
    return CALLS[call](_network(), _images())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("call", CALLS)
def test_results(call: str, dtype: torch.dtype, device: str) -> None:
    expected = _expected(call)
    net, images = _network(), _images()
    with _defaults(device, dtype):
        found = CALLS[call](net, images)
    assert found.device == expected.device and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_plans(dtype: torch.dtype, device: str) -> None:
    """The traced flow, not the order of registration, decides."""
    for net in (_network(), nn.Sequential(_Untraceable(_network()))):
        expected = str(plan(net))
        with _defaults(device, dtype):
            assert str(plan(net)) == expected


class _Untraceable(nn.Module):
    """Recorded on inputs that are guessed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.dim() - 3):
            x = self.inner(x)
        return x


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_saved_networks(device: str, tmp_path: Path) -> None:
    net = recalibrate(adderize(_network()), [_images()]).eval()
    images, fresh = _images(), _network()
    with _defaults(device, torch.float64):
        save_model(net, tmp_path / "net")
        load_model(fresh, tmp_path / "net")
        found = fresh.eval()(images)
    torch.testing.assert_close(found, net(images))
