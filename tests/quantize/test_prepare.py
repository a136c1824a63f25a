"""The model that is quantized is left as it was, whatever it keeps between calls."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from adderize import AdderizeError
from adderize.quantize import quantize
from tests.quantize.networks import Outer, Two, X, check, prepared, relative_error, trained


class Bank(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.scale = self.scale * 0.5
        return super().forward(x) * self.scale


class Helper:
    def __init__(self) -> None:
        self.seen: list[Any] = []


class Caches(Two):
    of_all: dict[Any, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.grids, self.cache, self.nested = [torch.zeros(1)], {}, {"a": [{}]}
        self.helper, self.calls = Helper(), 0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.calls += 1
        self.of_all[self.calls] = self.nested["a"][0]["last"] = y
        self.helper.seen.append(y)
        self.cache.setdefault(1, torch.ones(y.shape[-1]))
        self.grids[0] = torch.ones(1) + self.grids[0]
        return y + self.grids[0] * self.cache[1]


class Recurrent(Two):
    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.state = y if self.state is None else self.state + y
        return y + self.state


class Queue(Two):
    def __init__(self) -> None:
        super().__init__()
        self.queue = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.queue[0].add_(1)
        return super().forward(x) + self.queue[0]


@pytest.mark.parametrize("network", [Bank, Caches, Recurrent, Queue])
@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_the_model_is_left_as_it_was(network, traceable, fails, inplace):
    net = prepared(network())
    if network in (Caches, Recurrent):
        vars(net).update({k: v for k, v in vars(network()).items() if not k.startswith("_")})
        net.eval()
        Caches.of_all.clear()
    before = copy.deepcopy((net.state_dict(), dict(net.named_buffers()), *states(net)))
    model = net if traceable else Outer(net).eval()
    batches = [X, torch.full_like(X, torch.inf)] if fails else [X]
    try:
        quantized = quantize(model, batches, inplace=inplace)
        assert not fails
    except AdderizeError:
        assert fails
    else:
        inside = quantized if traceable else quantized.net
        if hasattr(inside, "steps"):
            assert torch.equal(inside.steps, before[1]["steps"])
    if fails or not inplace:
        assert_same((net.state_dict(), dict(net.named_buffers()), *states(net)), before)
        pickle.dumps({key: value for key, value in vars(net).items() if key != "between"})
    if not fails and not inplace:
        for _ in range(3):
            assert relative_error(quantized(X), model(X)) < 0.1


def states(net: nn.Module) -> list[Any]:
    names = ("grids", "cache", "nested", "of_all", "calls", "queue", "state")
    found = [getattr(net, name) for name in names if hasattr(net, name)]
    return [*found, net.helper.seen] if hasattr(net, "helper") else found


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert_same(list(a.values()), list(b.values()))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_a_model_that_cannot_be_copied():
    model = prepared(Two())
    model.features = model.stem(X)
    with pytest.raises(AdderizeError, match="cannot be copied"):
        quantize(model, [X])
    assert isinstance(quantize(model, [X], inplace=True), fx.GraphModule)


class ChangesInput(Two):
    """Normalises the images where they are."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 3
        x *= 2
        return super().forward(x)


@pytest.mark.parametrize("traceable", [True, False])
def test_calibration_images_stay_as_they_are(traceable):
    model, images = trained(ChangesInput(), tuple(X.shape)), X + 3
    model = model if traceable else Outer(model).eval()
    check(model, traced=traceable, images=images)
    assert torch.equal(images, X + 3)
