"""Situations in which a quantized network could compute something else than the float one."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adderize import AdderizeError, adderize, load_model, recalibrate, save_model
from adderize.layers import AdderConv2dSame
from adderize.quantize import prepare_qat, quantize, quantize_report
from tests.quantize.networks import conv

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def relative_error(given: Tensor, expected: Tensor) -> float:
    assert given.shape == expected.shape and given.dtype == expected.dtype
    return float(((given - expected).square().mean().sqrt() / expected.std()).detach())


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
    torch.manual_seed(0)
    adderize(model, example_input=X[:2])
    return recalibrate(model, [X]).eval()


def check(model: nn.Module, *, traced: bool = True, images: Tensor = X) -> nn.Module:
    quantized = quantize(model, [images])
    assert isinstance(quantized, fx.GraphModule) == traced, quantize_report(quantized).remarks
    with torch.no_grad():
        error = relative_error(quantized(images.clone()), model(images.clone()))
    assert error < 0.1
    return quantized


# Changes in place


def statement(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def between(y: Tensor) -> Tensor:
        change(y)
        return y

    return between


def read_again(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda y: change(y) + y


def power(y: Tensor) -> Tensor:
    y **= 2
    return y


def floor(y: Tensor) -> Tensor:
    y //= 0.5
    return y


CHANGES = {
    "relu_": torch.relu_,
    "clamp_": lambda y: torch.clamp_(y, 0.0, 1.0),
    "clip_": lambda y: torch.clip_(y, max=0.5),
    "hardtanh_": lambda y: F.hardtanh_(y, 0.0, 1.0),
    "elu_": F.elu_,
    "threshold_": lambda y: F.threshold_(y, 0.5, 0.0),
    "leaky_relu by position": lambda y: F.leaky_relu(y, 0.1, True),
    "hardtanh by position": lambda y: F.hardtanh(y, -0.5, 0.5, True),
    "silu by name": lambda y: F.silu(y, inplace=True),
    "mish": lambda y: F.mish(y, True),
    "dropout": lambda y: F.dropout(y, 0.5, False, True),
    "neg_": lambda y: y.neg_(),
    "mul_": lambda y: y.mul_(2.0),
    "masked_fill_": lambda y: y.masked_fill_(y > 1, 0.0),
    "copy_": lambda y: y.copy_(y.abs()),
    "addcmul_": lambda y: y.addcmul_(y, y, value=0.5),
    "out": lambda y: torch.add(y, 1.0, out=y),
    "out of another": lambda y: torch.mul(y * 2, 0.5, out=y),
}


@pytest.mark.parametrize("how", [statement, read_again])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name, how):
    check(prepared(Two(how(CHANGES[name]))))


def of_half(y: Tensor) -> Tensor:
    y[:, :4].neg_()
    return y


def of_view(y: Tensor) -> Tensor:
    flat = y.view(len(y), -1)
    y.clamp_(max=0.5)
    return flat.view_as(y)


def of_storage(y: Tensor) -> Tensor:
    y.data.mul_(-1.0)
    return y


def of_list(y: Tensor) -> Tensor:
    torch._foreach_neg_([y])
    return y


def of_part(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


HIDDEN = [of_half, of_view, of_storage, of_list, of_part, statement(power), statement(floor)]


@pytest.mark.parametrize("change", HIDDEN)
def test_changes_that_a_graph_does_not_show_are_not_traced(change):
    check(prepared(Two(change)), traced=False)


def test_one_half_may_be_changed_where_the_other_is_read():
    def halves(y: Tensor) -> Tensor:
        kept, changed = y.chunk(2, 1)
        changed.neg_()
        return torch.cat([kept, changed], 1)

    check(prepared(Two(halves)))


# Geometry


GEOMETRIES: dict[str, dict[str, Any]] = {
    "dilated by pairs": {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2)},
    "dilated by integers": {"dilation": 2, "padding": 2},
    "stride as an integer": {"stride": 2},
    "no padding": {"padding": 0},
    "same": {"padding": "same", "dilation": 3},
    "valid": {"padding": "valid"},
    "more rows than columns": {"padding": (2, 0), "stride": (2, 1)},
    "lists": {"padding": [2, 2], "dilation": [2, 2]},
    "reflect": {"padding_mode": "reflect", "padding": 3},
    "circular, same": {"padding_mode": "circular", "padding": "same", "dilation": (2, 1)},
    "replicate": {"padding_mode": "replicate", "padding": (0, 2)},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("traced", [True, False])
def test_geometry_that_is_assigned_after_construction(options, groups, traced, tmp_path):
    model = Two()
    model.a = conv(8, 8, stride=1, groups=groups)
    prepared(model)
    for name, value in options.items():
        setattr(model.a, name, value)
    recalibrate(model, [X]).eval()
    quantized = check(model if traced else Outer(model).eval(), traced=traced)
    save_model(quantized, tmp_path)
    fresh = Two()
    fresh.a = conv(8, 8, groups=groups)
    for name, value in options.items():
        setattr(fresh.a, name, value)
    loaded = load_model(fresh if traced else Outer(fresh), tmp_path)
    assert torch.equal(loaded(X), quantized(X))


def test_padding_of_tensorflow_with_padding_of_its_own():
    layer = AdderConv2dSame(3, 4, 3, stride=2)
    layer.padding, layer.dilation = 1, (2, 2)
    check(layer.eval(), traced=False)


# The model's state


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


# Hooks


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


# Forwards of instances, options


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


# Parameters that a forward reads


class Reads(Two):
    """A penalty on filters, and a bias and a stem's filters that take part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_of_stem = nn.BatchNorm2d(8)
        self.a.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm_of_stem(self.stem(x)))
        y = F.relu(self.na(self.a(y) * self.a.scale + self.a.bias.view(-1, 1, 1)))
        y = self.head(self.nb(self.b(y))) * self.stem.weight.abs().mean()
        return y, self.b.weight.abs().sum()


@pytest.mark.parametrize("trained", [False, True], ids=["calibrated", "trained with the rounding"])
def test_parameters_that_a_forward_reads_stay_floats(trained: bool, tmp_path) -> None:
    model = Reads()
    model.a.bias = nn.Parameter(torch.randn(8))
    prepared(model)
    quantized = quantize(prepare_qat(model, [X]).eval() if trained else model, [X])
    assert isinstance(quantized, fx.GraphModule), quantize_report(quantized).remarks
    assert len(quantize_report(quantized).layers) == 2
    with torch.no_grad():
        found, expected = quantized(X), model(X)
    assert relative_error(found[0], expected[0]) < 0.1
    assert torch.equal(found[1], expected[1])
    if not trained:
        save_model(quantized, tmp_path)
        fresh = Reads()
        fresh.a.bias = nn.Parameter(torch.zeros(8))
        assert torch.equal(load_model(fresh, tmp_path)(X)[0], found[0])


# Memory formats


class Views(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.view(y.size(0), -1)


@pytest.mark.parametrize("traced", [True, False])
def test_views_behind_8_bit_layers(traced):
    model = prepared(Views())
    check(model if traced else Outer(model).eval(), traced=traced)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("end", ["head", "adder", "pool", "single"])
def test_outputs_have_the_format_of_the_float_network(traced, end):
    model = prepared(Two())
    if end == "adder":
        model.head = nn.Identity()
    if end == "pool":
        model.head = nn.MaxPool2d(2)
    if end == "single":
        model, traced = model.a, False
    images = X if end != "single" else torch.randn(2, 8, 9, 9)
    quantized = check(model if traced else Outer(model).eval(), traced=traced, images=images)
    quantized(images).view(-1)
    assert quantized(images).stride() == model(images).stride()
    nhwc = images.contiguous(memory_format=torch.channels_last)
    assert quantized(nhwc).stride() == model(nhwc).stride()


# Classes of results


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    first: Tensor
    second: Tensor


@dataclass
class Output(OrderedDict[str, Any]):
    """As transformers' outputs are, which are registered as trees."""

    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        self.update(first=self.first, second=self.second)


pytree.register_pytree_node(
    Output,
    lambda output: ([*output.values()], None),
    lambda values, _: Output(*values),
    serialized_type_name="tests.Output",
)


@dataclass
class Doubled:
    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        self.first = 2 * self.first


class Giving(Two):
    def __init__(self, kind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return self.kind(y, y.relu())


@pytest.mark.parametrize(
    ("kind", "traced"), [(Pair, True), (Record, True), (Output, True), (Doubled, False)]
)
def test_results_keep_their_class(kind, traced: bool) -> None:
    model = prepared(Giving(kind))
    expected = model(X)
    quantized = quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule) == traced
    given = quantized(X)
    assert type(given) is kind
    assert relative_error(given.first, expected.first) < 0.1
    assert relative_error(given.second, expected.second) < 0.1


def test_what_a_dataclass_holds_is_compared() -> None:
    """Of a network with random results every call is another one, traced or not."""
    model = prepared(Giving(lambda y, z: Record(y + torch.randn(1), z)))
    remark = "a second call gives another result"
    assert remark in str(quantize_report(quantize(model, [X])).remarks)


# Defaults of torch


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("traced", [True, False])
def test_defaults_of_torch_make_no_difference(method, traced):
    model = prepared(Two())
    model = model if traced else Outer(model).eval()
    large = torch.randn(8, 3, 160, 160)
    expected = quantize(model, [large], method=method)(X)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            quantized = quantize(model, [large], method=method)
            given = quantized(X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(given, expected)
