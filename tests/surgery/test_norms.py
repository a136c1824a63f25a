"""Norms after adders, found and inserted."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize import adderize, plan
from adderize.dataflow import trace
from adderize.surgery.norms import find_norms


class After(nn.Module):
    """A convolution, then whatever is to be tested."""

    def __init__(self, tail, *norms: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(norms)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(self.stem(x)), x, self.norms)


def frozen(norm: nn.Module) -> nn.Module:
    return norm.requires_grad_(False)


FOUND = {
    "batch": (lambda y, x, n: n[0](y), [nn.BatchNorm2d(4)]),
    "without gamma": (lambda y, x, n: n[0](y), [nn.BatchNorm2d(4, affine=False)]),
    "group": (lambda y, x, n: n[0](y), [nn.GroupNorm(2, 4)]),
    "instance": (lambda y, x, n: n[0](y), [nn.InstanceNorm2d(4)]),
    "layer": (lambda y, x, n: n[0](y.permute(0, 2, 3, 1)), [nn.LayerNorm(4)]),
    "pooling": (lambda y, x, n: n[0](torch.max_pool2d(y, 2)), [nn.BatchNorm2d(4)]),
    "mean": (lambda y, x, n: n[0](y.mean((2, 3))), [nn.BatchNorm1d(4)]),
    "dropout": (
        lambda y, x, n: n[0](nn.functional.dropout(y, 0.5, True)),
        [nn.BatchNorm2d(4)],
    ),
    "concatenation": (lambda y, x, n: n[0](torch.cat([y, x], 1)), [nn.BatchNorm2d(7)]),
    "chunks": (
        lambda y, x, n: n[0](y.chunk(2, 1)[0]) + n[1](y.chunk(2, 1)[1]),
        [nn.BatchNorm2d(2), nn.BatchNorm2d(2)],
    ),
    "two norms": (lambda y, x, n: n[0](y) + n[1](y), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]),
    "shuffled channels": (
        lambda y, x, n: n[0](y.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(-1, 4, 8, 8)),
        [nn.BatchNorm2d(4)],
    ),
    "rows of tokens": (
        lambda y, x, n: n[0](y.flatten(2).transpose(1, 2).reshape(-1, 4)),
        [nn.BatchNorm1d(4)],
    ),
    "split channels": (lambda y, x, n: n[0](F.pixel_unshuffle(y, 2)), [nn.BatchNorm2d(16)]),
    "a size on the way": (lambda y, x, n: n[0](y.view(y.size(0), -1)), [nn.BatchNorm1d(256)]),
    "unused chunk": (lambda y, x, n: n[0](y.chunk(2, 1)[0]), [nn.BatchNorm2d(2)]),
}

MISSING = {
    "end": (lambda y, x, n: y, []),
    "activation": (lambda y, x, n: n[0](y.relu()), [nn.BatchNorm2d(4)]),
    "addition": (lambda y, x, n: n[0](y + 1), [nn.BatchNorm2d(4)]),
    "frozen": (lambda y, x, n: n[0](y), [frozen(nn.BatchNorm2d(4))]),
    "one path of two": (lambda y, x, n: n[0](y) + y, [nn.BatchNorm2d(4)]),
    "one chunk of two": (
        lambda y, x, n: n[0](y.chunk(2, 1)[0]) + y.chunk(2, 1)[1],
        [nn.BatchNorm2d(2)],
    ),
    "interpolation": (
        lambda y, x, n: n[0](nn.functional.interpolate(y, scale_factor=2.0)),
        [nn.BatchNorm2d(4)],
    ),
    "pixel shuffle": (lambda y, x, n: n[0](F.pixel_shuffle(y, 2)), [nn.BatchNorm2d(1)]),
    "groups as images": (lambda y, x, n: n[0](y.view(-1, 2, 8, 8)), [nn.BatchNorm2d(2)]),
    "rows as channels": (lambda y, x, n: n[0](y.permute(0, 2, 3, 1)), [nn.BatchNorm2d(8)]),
    "stacked": (lambda y, x, n: n[0](torch.stack([y, y], 1)), [nn.BatchNorm3d(2)]),
    "a volume": (lambda y, x, n: n[0](y.unsqueeze(1)), [nn.InstanceNorm3d(1)]),
    "one way of two": (
        lambda y, x, n: n[0](torch.cat([y, F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2)], 1)),
        [nn.BatchNorm2d(8)],
    ),
    "root mean square norm": (lambda y, x, n: n[0](y), [nn.RMSNorm([4, 8, 8])]),
}


def branch_on_data(tail):
    """The same computation in a form that torch.fx cannot trace."""

    def run(y: Tensor, x: Tensor, norms: nn.ModuleList) -> Tensor:
        return tail(y, x, norms) if y.shape[0] > 0 else y

    return run


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("case", [*FOUND, *MISSING])
def test_norms_are_found_where_only_they_follow(case, method):
    tail, norms = (FOUND | MISSING)[case]
    model = After(tail if method == "fx" else branch_on_data(tail), *norms)
    flow = trace(model, torch.empty(2, 3, 8, 8))[0]
    assert flow.method == method
    assert find_norms(flow, model.conv) == (norms if case in FOUND else [])


TOGETHER = {
    "layer": FOUND["layer"],
    "group": FOUND["group"],
    "one group": (lambda y, x, n: n[0](y), [nn.GroupNorm(1, 4)]),
    "beside a batch norm": (
        lambda y, x, n: n[0](y) + n[1](y), [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)]
    ),
}  # fmt: skip
APART = {
    "batch": FOUND["batch"],
    "instance": FOUND["instance"],
    "a group a channel": (lambda y, x, n: n[0](y), [nn.GroupNorm(4, 4)]),
}


@pytest.mark.parametrize(
    ("case", "inserted"),
    [*((case, True) for case in TOGETHER.values()), *((case, False) for case in APART.values())],
    ids=[*TOGETHER, *APART],
)
def test_norms_over_several_channels_get_a_batch_norm_before_them(case, inserted: bool) -> None:
    tail, norms = case
    model = After(tail, *norms)
    planned = plan(model, include="conv", head=True)
    assert planned.inserted == (["conv"] if inserted else [])
    adderize(model, include="conv", head=True)
    assert isinstance(model.conv.norm, nn.BatchNorm2d) == inserted
    assert [*model.norms] == norms


@pytest.mark.parametrize(
    "tail",
    [[nn.GroupNorm(1, 32)], [nn.PixelShuffle(4), nn.BatchNorm2d(2)]],
    ids=["one group", "pixel shuffle"],
)
@pytest.mark.parametrize(("norm", "low", "high"), [("ignore", 0.0, 0.1), ("insert", 0.9, 1.1)])
def test_what_images_change_is_lost_in_a_norm_over_all_channels(
    tail: list[nn.Module], norm: str, low: float, high: float
) -> None:
    """The share of the outputs' variance that lies between images, not between channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 1), *tail)
    outputs = adderize(model, stem=True, head=True, norm=norm)(torch.randn(64, 16, 1, 1))
    assert low < float(outputs.var(0).mean() / outputs.var()) < high


class Momentum(nn.Module):
    """A network and its frozen copy, as BYOL and MoCo have."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.online(x) - self.target(x)).square().mean()


def test_a_frozen_copy_is_converted_as_its_original_is() -> None:
    with pytest.warns(UserWarning, match=r"the filters of target\.1, target\.4 are frozen"):
        model = adderize(Momentum())
    online, target = model.online.state_dict(), model.target.state_dict()
    assert online.keys() == target.keys()
    assert all(torch.equal(online[key], target[key]) for key in online)
    assert {type(layer.norm) for layer in (model.online[4], model.target[4])} == {nn.BatchNorm2d}
    assert model.online[1].norm is None and model.target[1].norm is None
    assert all(p.requires_grad for p in model.online.parameters())
    assert not any(p.requires_grad for p in model.target.parameters())
    assert {row.name for row in plan(model).rows if row.norm_fix.name == "MISSING"} == set()


def test_no_optimizer_lacks_the_norms_of_frozen_layers() -> None:
    model = Momentum()
    model.online.requires_grad_(False)
    optimizer = torch.optim.SGD(model.online[:2].parameters(), lr=0.1)
    with pytest.warns(UserWarning) as caught:
        adderize(model)
    (warning,) = caught
    assert optimizer.param_groups and "momentum encoder" in str(warning.message)
