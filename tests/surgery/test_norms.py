"""Norms after adders, found and inserted, and their statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderizeError, recalibrate
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
    "root mean square norm": (lambda y, x, n: n[0](y), [nn.RMSNorm([4, 8, 8])]),
}


def branch_on_data(tail):
    """The same computation in a form that torch.fx cannot trace."""

    def run(y: Tensor, x: Tensor, norms: nn.ModuleList) -> Tensor:
        return tail(y, x, norms) if y.shape[0] > 0 else y

    return run


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("case", FOUND)
def test_found(case, method):
    tail, norms = FOUND[case]
    model = After(tail if method == "fx" else branch_on_data(tail), *norms)
    flow = trace(model, torch.empty(2, 3, 8, 8))[0]
    assert flow.method == method
    assert find_norms(flow, model.conv) == norms


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("case", MISSING)
def test_missing(case, method):
    tail, norms = MISSING[case]
    model = After(tail if method == "fx" else branch_on_data(tail), *norms)
    flow = trace(model, torch.empty(2, 3, 8, 8))[0]
    assert flow.method == method
    assert find_norms(flow, model.conv) == []


def norm_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))


def test_recalibrate_averages_the_statistics_of_the_batches():
    torch.manual_seed(0)
    model = norm_model().eval()
    model[1].momentum = 0.3
    model[1].running_mean.fill_(77.0)
    model[3].train()
    batches = [torch.randn(8, 3, 6, 6), torch.randn(8, 3, 6, 6) + 1]
    assert recalibrate(model, [(batch, torch.zeros(8)) for batch in batches]) is model
    outputs = [model[0](batch).detach() for batch in batches]
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert model[1].momentum == 0.3
    assert [module.training for module in model] == [False, False, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


class Student(nn.Module):
    """Batch norms that the forward calls, and those of a teacher that it does not."""

    def __init__(self, calls: str = "net") -> None:
        super().__init__()
        self.net, self.teacher, self.calls = norm_model(), norm_model(), calls

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.calls == "net" else x


def test_recalibrate_leaves_norms_alone_that_the_forward_does_not_call():
    model = Student()
    model.teacher(torch.randn(8, 3, 6, 6))
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    recalibrate(model, [torch.randn(8, 3, 6, 6)])
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.net[1].running_mean.any()


def test_recalibrate_without_a_call_of_any_norm():
    model = Student(calls="nothing")
    model.net(torch.randn(8, 3, 6, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdderizeError, match="called none of its batch norms"):
        recalibrate(model, [torch.randn(8, 3, 6, 6)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_recalibrate_leaves_the_model_as_it_was_when_a_batch_fails():
    model = norm_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(8, 3, 6, 6), torch.randn(8, 5, 6, 6)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.training


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (nn.Linear(2, 2), [torch.zeros(1, 2)], "no batch norm"),
        (norm_model(), [], "no batches"),
    ],
)
def test_recalibrate_wrong_uses(model, batches, words):
    with pytest.raises(AdderizeError, match=words):
        recalibrate(model, batches)
