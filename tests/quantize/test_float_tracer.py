"""What `model(inputs)` runs: forward hooks, forwards of instances, options' defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adderize import load_model, save_model
from adderize.quantize import quantize, quantize_report
from tests.quantize.networks import Residual, Two, X, check, conv, prepared, relative_error, trained


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + self.body(x) * scale


def blocks() -> nn.Module:
    return prepared(nn.Sequential(conv(3, 8), Block(), Block(), nn.Conv2d(8, 2, 1)))


class Collector:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)


@pytest.mark.parametrize("where", ["", "1", "1.body", "1.body.0", "1.body.1", "1.body.2", "0"])
def test_hooks_of_blocks_run_on_floats(where, tmp_path):
    model, collector = blocks(), Collector()
    model.get_submodule(where).register_forward_hook(collector.hook)
    expected = model(X)
    (feature,) = collector.seen
    quantized = quantize(model, [X])
    collector.seen.clear()
    given = quantized(X)
    (seen,) = collector.seen
    assert relative_error(seen, feature) < 0.1 and relative_error(given, expected) < 0.1
    seen.view(-1)
    if where in ("", "1", "1.body"):
        name = where or "the model"
        assert f"forward hooks of {name} run" in str(quantize_report(quantized))
        save_model(quantized, tmp_path)
        fresh = nn.Sequential(conv(3, 8), Block(), Block(), nn.Conv2d(8, 2, 1))
        assert torch.equal(load_model(fresh, tmp_path)(X), given)


def negated(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return -output


def doubled(module: nn.Module, args: Any) -> Any:
    return args[0] * 2


def tripled(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return (args[0] * 3,), kwargs


def with_kwargs(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output - args[0]


@pytest.mark.parametrize("where", ["", "1", "1.body"])
def test_hooks_of_blocks_change_what_they_change(where):
    for register in (
        lambda m: m.register_forward_hook(negated),
        lambda m: m.register_forward_pre_hook(doubled),
        lambda m: m.register_forward_pre_hook(tripled, with_kwargs=True),
        lambda m: m.register_forward_hook(lambda m, i, o: o.mul_(3)),
    ):
        model = blocks()
        before = model(X)
        register(model.get_submodule(where))
        assert relative_error(model(X), before) > 0.2
        check(model)
    if where:
        model = blocks()
        model.get_submodule(where).register_forward_hook(with_kwargs, with_kwargs=True)
        check(model)


class OwnHook(Two):
    """Keeps a feature by a hook of its own, and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.feature: Any = 0
        self.body = nn.Sequential(self.a, self.na, nn.ReLU())
        self.body.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.feature = output

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nb(self.b(self.body(self.stem(x)))) + self.feature)


def test_a_network_may_work_by_hooks_of_its_own(tmp_path):
    model = prepared(OwnHook())
    model.feature = 0
    quantized = check(model)
    assert relative_error(quantized(2 * X[:4]), model(2 * X[:4])) < 0.2


@pytest.mark.parametrize("hooked", ["block.conv1", "block.bn2", "block.act", "stem.0", "stem.1"])
def test_forward_hooks_are_run(hooked):
    model = trained(Residual(), tuple(X.shape))
    before = model(X)
    model.get_submodule(hooked).register_forward_hook(lambda _, inputs, output: 1 - 2 * output)
    quantized, expected = quantize(model, [X]), model(X)
    assert relative_error(before, expected) > 0.5
    assert relative_error(quantized(X), expected) < 0.1
    stays = "block.conv1 stays float32: it has forward hooks" in str(quantize_report(quantized))
    assert stays == (hooked == "block.conv1")


def with_activation() -> nn.Module:
    model = Two()
    model.act = model.between = nn.ReLU()
    return prepared(model)


@pytest.mark.parametrize("where", ["a", "na", "act", "stem", ""])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["forward", "_call_impl"])
def test_a_forward_that_was_put_on_an_instance(where, sign, method):
    model, expected = with_activation(), with_activation()
    for one in (model, expected):
        layer = one.get_submodule(where)
        setattr(layer, method, lambda x, layer=layer: sign * type(layer).forward(layer, x))
    quantized = quantize(model, [X], inplace=True)
    assert relative_error(quantized(X), expected(X)) < 0.1
    if where == "a":
        assert "a stays float32: it has a forward of its own" in str(quantize_report(quantized))


class Optional(Two):
    def forward(
        self, x: Tensor, state: Tensor | None = None, mode: str = "twice", *, flat: bool = False
    ) -> Tensor:
        y = super().forward(x)
        if state is None:
            state = y * 2
        y = y + state if mode == "twice" else y
        return y.flatten(1) if flat else y


def test_options_of_forward_have_their_defaults():
    quantized = check(prepared(Optional()))
    assert torch.equal(quantized(X, None, mode="twice", flat=False), quantized(X))
    with pytest.raises(Exception, match="state"):
        quantized(X, state=X)
    with pytest.raises(Exception, match="mode"):
        quantized(X, mode="once")
