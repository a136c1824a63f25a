"""torch.fx and a recorded forward see the same data flow, in-place changes among it."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import plan
from adderize.dataflow import Flow
from adderize.dataflow.recording import record
from adderize.dataflow.symbolic import trace_symbolically
from adderize.surgery.norms import find_norms, find_norms_before
from adderize.surgery.roles import find_roles

CAT_TAKES_TRACED_LISTS = torch.__version__ >= (2, 7)


def flows_of(model: nn.Module, *inputs: Tensor) -> tuple[Flow, Flow]:
    with torch.no_grad():
        meta = tuple(x.to("meta") for x in inputs)
        flows = trace_symbolically(model, len(inputs)), record(model, meta)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return flows[0].prune(), flows[1].prune()


def described(model: nn.Module, flow: Flow) -> dict[str, object]:
    """What the surgery reads from a flow, by the layers' names."""
    names = {module: name for name, module in model.named_modules()}
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    roles = find_roles(model, [flow], layers)
    return {
        "stem": {names[m] for m in roles.stem},
        "head": {names[m] for m in roles.head},
        "gates": {names[m] for m in roles.gates},
        "called": {names[m] for m in layers if flow.calls(m)},
        "after": {names[m]: [names[n] for n in find_norms(flow, m)] for m in layers},
        "before": {names[m]: [names[n] for n in find_norms_before(flow, m)] for m in layers},
    }


class Tail(nn.Module):
    """A convolution, something done to its output, and a norm that may follow it."""

    def __init__(self, change) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu, self.head = (
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 2, 1),
        )
        self.drop, self.identity = nn.Dropout(0.5), nn.Identity()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("kept", torch.zeros(2, 4, 8, 8))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.change(self, self.conv(self.stem(x)))))


def then(change, *, read=lambda y, changed: y):
    """Run a change as a statement; go on with what the name had before."""

    def run(net: Tail, y: Tensor) -> Tensor:
        return read(y, change(net, y))

    return run


def view_first(view, change):
    def run(net: Tail, y: Tensor) -> Tensor:
        change(net, view(y))
        return y

    return run


def view_kept(view, change):
    def run(net: Tail, y: Tensor) -> Tensor:
        seen = view(y)
        change(net, y)
        return seen.reshape(y.shape)

    return run


def augmented(net: Tail, y: Tensor) -> Tensor:
    alias = y
    y += 1
    return alias


def other_half(net: Tail, y: Tensor) -> Tensor:
    left, right = y.chunk(2, 1)
    left.relu_()
    return torch.cat([right, right], 1)


def same_half(net: Tail, y: Tensor) -> Tensor:
    left, right = y.chunk(2, 1)
    left.relu_()
    return torch.cat([left, right], 1)


def other_slice(net: Tail, y: Tensor) -> Tensor:
    y[:, :2].relu_()
    return torch.cat([y[:, 2:], y[:, 2:]], 1)


def filled(net: Tail, y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[:, :2] = y[:, :2]
    out[:, 2:] = y[:, 2:]
    return out


def through_a_buffer(net: Tail, y: Tensor) -> Tensor:
    net.kept.copy_(y)
    return net.kept


def dropped_copy(net: Tail, y: Tensor) -> Tensor:
    net.drop(y).relu_()
    return y


def own_copy(net: Tail, y: Tensor) -> Tensor:
    y.clone().relu_()
    return y


def two_changes(net: Tail, y: Tensor) -> Tensor:
    y.mul_(2)
    y.add_(net.gamma)
    return y


# Whether a norm is still found right behind the convolution.
CHANGES = {
    "nothing": (lambda net, y: y, True),
    "module as a statement": (then(lambda net, y: net.relu(y)), False),
    "module, result read": (then(lambda net, y: net.relu(y), read=lambda y, z: z), False),
    "function with inplace=True": (then(lambda net, y: F.relu(y, inplace=True)), False),
    "function with inplace by position": (then(lambda net, y: F.relu(y, True)), False),
    "function of two, by position": (then(lambda net, y: F.leaky_relu(y, 0.1, True)), False),
    "function without inplace": (then(lambda net, y: F.relu(y)), True),
    "F.relu_": (then(lambda net, y: F.relu_(y)), False),
    "torch.relu_": (then(lambda net, y: torch.relu_(y)), False),
    "method": (then(lambda net, y: y.relu_()), False),
    "add_": (then(lambda net, y: y.add_(1)), False),
    "mul_ by a parameter": (then(lambda net, y: y.mul_(net.gamma)), False),
    "clamp_": (then(lambda net, y: y.clamp_(min=0)), False),
    "augmented assignment of an alias": (augmented, False),
    "setitem": (then(lambda net, y: y.__setitem__((slice(None), 0), 0.0)), False),
    "out=": (then(lambda net, y: torch.add(y, 1, out=y)), False),
    "two changes": (two_changes, False),
    "view, changed": (view_first(lambda y: y.view(2, -1), lambda net, v: v.relu_()), False),
    "flatten, changed": (view_first(lambda y: y.flatten(1), lambda net, v: v.relu_()), False),
    "transpose, changed": (view_first(lambda y: y.mT, lambda net, v: v.relu_()), False),
    "slice, changed": (view_first(lambda y: y[:, :2], lambda net, v: v.relu_()), False),
    "detached, changed": (view_first(lambda y: y.detach(), lambda net, v: v.relu_()), False),
    "identity, changed": (
        lambda net, y: (net.relu(net.identity(y)), y)[1],
        False,
    ),
    "view of a changed tensor": (view_kept(lambda y: y[:, :], lambda net, y: y.relu_()), False),
    "half, the other one read": (other_half, True),
    "half, both read": (same_half, False),
    # What is read from a changed tensor counts as changed, whichever part it is.
    "slice, the other one read": (other_slice, False),
    "filled": (filled, False),
    "through a buffer": (through_a_buffer, False),
    "a dropped copy": (dropped_copy, True),
    "a copy": (own_copy, True),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_changes_in_place(case):
    change, found = CHANGES[case]
    model = Tail(change)
    symbolic, recorded = flows_of(model, torch.empty(2, 3, 8, 8))
    assert described(model, symbolic) == described(model, recorded)
    assert bool(find_norms(symbolic, model.conv)) == found
    row = next(row for row in plan(model).rows if row.name == "conv")
    assert (row.norm, row.method) == ("norm" if found else "inserted", "fx")


class Random(nn.Module):
    """A random network over a pool of values, of every kind of operation and change."""

    def __init__(self, seed: int, length: int = 14) -> None:
        super().__init__()
        self.seed, self.length = seed, length
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(length))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(length))
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.identity, self.drop = nn.Identity(), nn.Dropout2d(0.5)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        draw = random.Random(self.seed)
        pool = [self.convs[0](x)]
        for i in range(1, self.length):
            y = pool[-1] if draw.random() < 0.7 else draw.choice(pool)
            z = draw.choice(pool)
            step = draw.randrange(16)
            if step < 3:
                pool.append(self.convs[i](y))
            elif step < 6:
                pool.append(self.norms[i](y))
            elif step == 6:
                self.relu_(y)
            elif step == 7:
                y.mul_(self.gamma)
            elif step == 8:
                y += z.detach().clone()
            elif step == 9:
                F.relu(y[:, : draw.choice([1, 2])], inplace=True)
            elif step == 10 and CAT_TAKES_TRACED_LISTS:
                pool.append(torch.cat(y.chunk(2, 1)[::-1], 1))
            elif step == 11:
                pool.append(y.flatten(2).unflatten(2, (8, 8)))
            elif step == 12:
                pool.append(draw.choice([self.identity, self.drop, self.relu])(y))
            elif step == 13:
                y.split(2, 1)[draw.choice([0, 1])].add_(1)
            elif step == 14:
                pool.append(y + z)
            else:
                pool.append(draw.choice([y.transpose(2, 3), y.clone(), y[:, [3, 2, 1, 0]]]))
        return sum([pool[-1], *draw.sample(pool, min(2, len(pool)))])


@pytest.mark.parametrize("block", range(4))
def test_random_networks(block):
    for seed in range(100 * block, 100 * block + 100):
        model = Random(seed)
        symbolic, recorded = flows_of(model, torch.empty(2, 4, 8, 8))
        assert described(model, symbolic) == described(model, recorded), seed


class Positions(Tail):
    """A convolution that works on positions, which do not come from the input."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.stem(x))
        return self.head(y + self.norm(self.conv(torch.ones(1, 4, 8, 8, device=x.device))))


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="fx of torch 2.6 cannot trace x.device")
def test_a_layer_of_what_does_not_come_from_the_input():
    model = Positions(None)
    with torch.device("meta"):
        model.to("meta")
        symbolic, recorded = flows_of(model, torch.empty(2, 3, 8, 8))
    assert described(model, symbolic) == described(model, recorded)
    assert len(symbolic.calls(model.conv)) == 2


ATTRIBUTES = {
    "real part": lambda y: torch.fft.ifft2(torch.fft.fft2(y)).real,
    "imaginary part": lambda y: torch.complex(y, y).imag,
    "largest values": lambda y: torch.max(y, 1, keepdim=True).values.expand(-1, 4, -1, -1),
    "sorted values": lambda y: y.sort(1).values,
    "transposed": lambda y: y.mT,
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_attributes_that_are_tensors(case):
    class Through(Tail):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(ATTRIBUTES[case](self.conv(self.stem(x)))))

    model = Through(None)
    symbolic, recorded = flows_of(model, torch.empty(2, 3, 8, 8))
    assert described(model, symbolic) == described(model, recorded)
    rows = {row.name: row for row in plan(model).rows}
    assert (rows["conv"].decision, rows["conv"].norm) == ("convert", "inserted")
    assert rows["stem"].reason.startswith("stem")


def test_what_a_forward_asks_about_a_tensor_is_no_path():
    class Asking(Tail):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.stem(x))
            return self.head(self.norm(y)) / y.nelement() + y.ndimension() + y.shape.numel()

    model = Asking(None)
    (row,) = (row for row in plan(model).rows if row.name == "conv")
    assert (row.norm, row.method) == ("norm", "fx")
