"""Tracing leaves a model exactly as it was, whatever it holds, also where it fails."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import logging
import pickle
import random
import sys
import threading
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adderize import AdderizeError, adderize, count, plan
from adderize.counting.trace import blank_copy

SEEN: dict[str, Tensor] = {}


@functools.lru_cache
def grid(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, width).expand(height, width)


@dataclass
class Record:
    calls: int = 0
    last: list[Tensor] = field(default_factory=list)


class Slotted:
    __slots__ = ("calls", "last")

    def __init__(self) -> None:
        self.calls, self.last = 0, None


class Linked:
    """An object that knows itself, as parents and children do."""

    def __init__(self) -> None:
        self.me, self.values = self, [0]


class Keeper(nn.Module):
    """Two convolutions, and a place to keep things."""

    table: dict[str, Tensor] = {}  # noqa: RUF012
    total = 0

    def __init__(self, keep, things: dict[str, object], traceable: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
            nn.ReLU(), nn.Conv2d(8, 4, 1),
        )  # fmt: skip
        self.traceable, self.keep = traceable, keep
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("bank", torch.arange(6.0).view(2, 3))
        self.grid = torch.ones(2)
        for name, thing in things.items():
            setattr(self, name, thing)

    def forward(self, x: Tensor, memory: list = []) -> Tensor:  # noqa: B006
        y = self.net(x)
        self.keep(self, y, memory)
        if not self.traceable and y.shape[0] < 1:
            raise RuntimeError
        return y


def nested(net, y, memory):
    net.box["a"][0].append((y, {"deep": y}))
    net.box["b"] = y


def appended(net, y, memory):
    net.found.append(y)
    net.found[0] = y


def averaged(net, y, memory):
    for parameter in net.parameters():
        parameter.data.mul_(0.5)
        break
    next(iter(net.net[1].parameters())).data = torch.zeros(8, 8, 3, 3)


def cached_by_function(net, y, memory):
    grid(3, 4)
    SEEN["grid"] = torch.zeros(2, device="meta")


def closed_over():
    calls = 0
    kept = []

    def note(y):
        nonlocal calls
        calls += 1
        kept.append(y)

    note.state = lambda: (calls, list(kept))
    return note


def drawn(net, y, memory):
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(2)
    torch.rand(2, generator=net.generator)
    net.dice.random()
    net.rng.random()


def hidden_module(net, y, memory):
    net.teachers[0].calls += 1
    net.teachers[0].count.add_(1)
    net.teachers[0].train()


def rewired(net, y, memory):
    net.new = y
    net.register_buffer("late", torch.zeros(1))
    net.register_forward_hook(lambda *_: None)
    net.eval()
    net.net[1].requires_grad_(False)
    del net.extra


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("count", torch.zeros(1))


KEEP = {
    "a list": (appended, {"found": [torch.zeros(1)]}),
    "a dict": (lambda n, y, m: n.cache.update({1: y}), {"cache": {0: torch.zeros(1)}}),
    "an ordered dict": (
        lambda n, y, m: n.cache.move_to_end("a"),
        {"cache": OrderedDict(a=1, b=2)},
    ),
    "a default dict": (lambda n, y, m: n.cache["x"].append(y), {"cache": defaultdict(list)}),
    "a counter": (lambda n, y, m: n.cache.update("abc"), {"cache": Counter("a")}),
    "a deque": (lambda n, y, m: n.queue.append(y), {"queue": deque([1, 2], maxlen=2)}),
    "a set": (lambda n, y, m: n.names.add(3), {"names": {1, 2}}),
    "bytes": (lambda n, y, m: n.raw.append(3), {"raw": bytearray(b"ab")}),
    "nested": (nested, {"box": {"a": ([],), "b": None}}),
    "a tuple of lists": (lambda n, y, m: n.pair[1].append(y), {"pair": ([], [])}),
    "an attribute": (lambda n, y, m: setattr(n, "last", y), {"last": None}),
    "a number": (lambda n, y, m: setattr(n, "calls", n.calls + 1), {"calls": 0}),
    "a dataclass": (
        lambda n, y, m: (setattr(n.record, "calls", 7), n.record.last.append(y)),
        {"record": Record()},
    ),
    "an object with slots": (
        lambda n, y, m: (setattr(n.box, "calls", 7), setattr(n.box, "last", y)),
        {"box": Slotted()},
    ),
    "a name space": (lambda n, y, m: setattr(n.box, "last", y), {"box": SimpleNamespace(last=0)}),
    "an object that knows itself": (
        lambda n, y, m: n.box.me.values.append(y),
        {"box": Linked()},
    ),
    "a buffer": (lambda n, y, m: n.steps.add_(1), {}),
    "a buffer by assignment": (lambda n, y, m: setattr(n, "steps", n.steps + 1), {}),
    "a view of a buffer": (lambda n, y, m: n.bank[0].fill_(9), {}),
    "a resized buffer": (lambda n, y, m: n.bank.resize_(3, 4), {}),
    "a tensor": (lambda n, y, m: n.grid.mul_(3), {}),
    "a tensor in a list": (lambda n, y, m: n.tensors[0].mul_(3), {"tensors": [torch.ones(2)]}),
    "averaged parameters": (averaged, {}),
    "a default argument": (lambda n, y, m: m.append(y), {}),
    "a class's dict": (lambda n, y, m: Keeper.table.update(last=y), {}),
    "a class's number": (lambda n, y, m: setattr(Keeper, "total", Keeper.total + 1), {}),
    "an array": (lambda n, y, m: n.array.__iadd__(1), {"array": np.zeros(3)}),
    "an endless count": (lambda n, y, m: next(n.ids), {"ids": itertools.count()}),
    "a closure": (lambda n, y, m: n.note(y), {"note": closed_over()}),
    "a bound method": (lambda n, y, m: n.store(y), {"store": [].append}),
    "a partial function": (
        lambda n, y, m: n.store(y),
        {"store": functools.partial(list.append, [])},
    ),
    "generators": (
        drawn,
        {
            "generator": torch.Generator(),
            "dice": random.Random(0),
            "rng": np.random.default_rng(0),
        },
    ),
    "a module in a list": (hidden_module, {"teachers": [Teacher().eval()]}),
    "modes, hooks and registrations": (rewired, {"extra": 1}),
    "global caches": (cached_by_function, {}),
}


def content(thing, seen=None):
    """All that can be reached, as plain values."""
    seen = {} if seen is None else seen
    if id(thing) in seen:
        return "again"
    seen[id(thing)] = thing
    if isinstance(thing, Tensor):
        return [thing.tolist(), thing.requires_grad, str(thing.device), tuple(thing.shape)]
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if isinstance(thing, torch.Generator):
        return thing.get_state().tolist()
    if isinstance(thing, random.Random):
        return thing.getstate()
    if isinstance(thing, np.random.Generator):
        return str(thing.bit_generator.state)
    if isinstance(thing, itertools.count):
        return repr(thing)
    if isinstance(thing, dict):
        return [(str(key), content(value, seen)) for key, value in thing.items()]
    if isinstance(thing, (list, tuple, deque)):
        return [content(value, seen) for value in thing]
    if isinstance(thing, (set, bytearray)):
        return sorted(thing)
    if isinstance(thing, functools.partial):
        return content(thing.args, seen)
    if getattr(thing, "state", None) and callable(thing):
        return content(thing.state(), seen)
    if type(thing).__name__ == "builtin_function_or_method":
        return content(thing.__self__, seen)
    if isinstance(thing, Slotted):
        return content([thing.calls, thing.last], seen)
    if isinstance(thing, (nn.Module, Record, SimpleNamespace, Linked)):
        return content(vars(thing), seen)
    return thing if isinstance(thing, (int, float, str, bool, type(None))) else str(type(thing))


def everything(model):
    numpy_state = np.random.get_state()  # noqa: NPY002
    state = [random.getstate(), torch.get_rng_state().tolist(), numpy_state[1].tolist()]
    default = Keeper.forward.__defaults__
    shared = [Keeper.table, Keeper.total, default, SEEN, grid.cache_info().currsize]
    return [content(model), state, content(shared)]


CALLS = {"plan": plan, "count": lambda model: count(model, (3, 16, 16))}


@pytest.mark.parametrize("traceable", [True, False], ids=["fx", "hooks"])
@pytest.mark.parametrize("case", KEEP)
def test_a_model_is_left_as_it_was(case, traceable):
    keep, things = KEEP[case]
    model = Keeper(keep, copy.deepcopy(things) if case != "a closure" else things, traceable)
    before = everything(model)
    plan(model)
    assert everything(model) == before


def test_a_trace_that_fails_half_way_leaves_no_mark():
    def fail(net, y, memory):
        net.found.append(y)
        net.steps.add_(1)
        net.last = y
        raise KeyError("nowhere")

    class Failing(Keeper):
        def forward(self, x):
            self.keep(self, self.net[0](x), [])

    model = Failing(fail, {"found": [], "last": None}, traceable=False)
    before = everything(model)
    assert {row.method for row in plan(model).rows} == {"order"}
    with pytest.raises(AdderizeError, match="KeyError"):
        plan(model, example_input=torch.zeros(1, 3, 8, 8))
    assert everything(model) == before


@pytest.mark.parametrize(
    "case", ["a list", "a dict", "nested", "a dataclass", "a tensor in a list"]
)
def test_converted_models_run_copy_and_pickle(case):
    keep, things = KEEP[case]
    # A function of this file is pickled by name: the model must not hold a lambda.
    model = adderize(Keeper(keep, copy.deepcopy(things), traceable=True), init="keep")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model.net[1].weight.grad.abs().sum() > 0
    model.keep = None
    fresh = adderize(
        Keeper(None, copy.deepcopy(things), traceable=True), include="net.1", norm="ignore"
    )
    copy.deepcopy(fresh)
    pickle.loads(pickle.dumps(fresh))


def test_counting_leaves_a_model_alone_that_keeps_tensors_of_a_graph():
    model = Keeper(appended, {"found": [torch.zeros(1)]}, traceable=True)
    model(torch.randn(2, 3, 8, 8))
    before = model.found[0]
    assert before.grad_fn is not None
    assert count(model, (3, 16, 16)).before.multiplications > 0
    assert model.found[0] is before and len(model.found) == 2
    twin = blank_copy(model)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers(), twin.grid, *twin.found))


class Shy:
    """Raises where one looks at it."""

    @property
    def __dict__(self):
        raise RuntimeError

    def __getattr__(self, name):
        raise KeyError(name)


class StrictDict(dict):
    def items(self):
        raise RuntimeError

    clear = items


def deep() -> list:
    found: list = []
    for _ in range(5000):
        found = [found]
    return found


DEEP = deep()


@pytest.mark.parametrize(
    "thing",
    [
        Shy(), StrictDict(a=1), threading.Lock(), threading.local(), io.BytesIO(b"ab"),
        (i for i in range(3)), weakref.ref(Shy), sys, DEEP,
        logging.getLogger("x"), UserDict(a=[1]), MappingProxyType({}), torch.eye(3).to_sparse(),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_what_cannot_be_looked_into_does_no_harm(thing):
    model = Keeper(lambda n, y, m: None, {}, traceable=True)
    object.__setattr__(model, "thing", thing)
    assert plan(model).converted == ["net.1"]
    assert model.thing is thing


def test_a_dead_reference_does_no_harm():
    model = Keeper(lambda n, y, m: None, {}, traceable=True)
    object.__setattr__(model, "thing", weakref.proxy(Linked.__new__(Linked)))
    assert plan(model).converted == ["net.1"]


def test_no_parameter_is_copied():
    """Their memory is kept only where something overwrites them."""
    model = Keeper(lambda n, y, m: None, {}, traceable=True)
    addresses = [p.data_ptr() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    plan(model)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert [p._version for p in model.parameters()] == versions


class Writer(nn.Module):
    """Writes to a file while it runs, as another process may."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        np.memmap(self.path, np.float64, "r+")[0] += 1
        return x


@pytest.mark.parametrize("view", [lambda a: a, np.asarray, lambda a: a.reshape(2, -1)[:, 1:]])
def test_files_in_memory_are_not_the_models(tmp_path, view):
    path = str(tmp_path / "samples")
    np.zeros(8).tofile(path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Writer(path), nn.Conv2d(4, 2, 3))
    model.samples = view(np.memmap(path, np.float64, "r+"))
    plan(model)
    assert np.fromfile(path)[0] > 0
