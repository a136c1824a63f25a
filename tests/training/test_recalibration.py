"""Statistics of batch norms, estimated anew from batches of every kind."""

from __future__ import annotations

import copy
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adderize import AdderConv2d, AdderizeError, recalibrate, scale_adder_gradients_

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@dataclass
class Record:
    image: Tensor


def norm_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))


def test_statistics_are_averaged_over_the_batches() -> None:
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


def test_instance_norms_that_track_statistics() -> None:
    """Each image's own mean and variance, averaged; the norm is called twice a forward."""
    norm = nn.InstanceNorm2d(3, momentum=0.3, track_running_stats=True)
    batches = [torch.randn(4, 3, 6, 6), 2 * torch.randn(4, 3, 6, 6) + 1, torch.randn(4, 3, 6, 6)]
    with torch.no_grad():
        norm(batches[0])
    model = nn.ModuleList([norm])
    recalibrate(model, batches, forward=lambda model, batch: (norm(batch), norm(batch - 1)))
    images = torch.cat([image for batch in batches for image in (batch, batch - 1)])
    torch.testing.assert_close(norm.running_mean, images.mean((2, 3)).mean(0))
    torch.testing.assert_close(norm.running_var, images.var((2, 3)).mean(0))
    assert norm.momentum == 0.3 and not norm._forward_pre_hooks


class Student(nn.Module):
    """Batch norms that the forward calls, and those of a teacher that it does not."""

    def __init__(self, calls: str = "net") -> None:
        super().__init__()
        self.net, self.teacher, self.calls = norm_model(), norm_model(), calls

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.calls == "net" else x


def test_norms_that_the_forward_does_not_call_are_left_alone() -> None:
    model = Student()
    model.teacher(torch.randn(8, 3, 6, 6))
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    recalibrate(model, [torch.randn(8, 3, 6, 6)])
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.net[1].running_mean.any()


def test_norms_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = norm_model()
    with pytest.raises(AdderizeError, match=r"made in inference mode.*copy the model"):
        recalibrate(model, [IMAGES])
    copied = recalibrate(copy.deepcopy(model), [IMAGES])
    with torch.inference_mode():
        recalibrate(model, [IMAGES])
    assert torch.equal(copied[1].running_mean, model[1].running_mean)
    assert model[1].running_mean.any()


def test_without_a_call_of_any_norm() -> None:
    model = Student(calls="nothing")
    model.net(torch.randn(8, 3, 6, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdderizeError, match="called none of its batch norms"):
        recalibrate(model, [torch.randn(8, 3, 6, 6)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_model_is_as_it_was_when_a_batch_fails() -> None:
    model = norm_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(8, 3, 6, 6), torch.randn(8, 5, 6, 6)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.training


def mean_of(images: Tensor) -> Tensor:
    """Statistics of what reaches the first norm of :func:`seeded`."""
    mean: Tensor = seeded()[0](images).detach().mean((0, 2, 3))
    return mean


def seeded() -> nn.Sequential:
    torch.manual_seed(1)
    return norm_model()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = seeded()

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.net(image + other)


class Masked(TwoInputs):
    def forward(self, image: Tensor, mask: Any = None, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return self.net(image if mask is None else image * mask)


class TakesDict(TwoInputs):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.net(batch["image"])


class TakesRecord(TwoInputs):
    def forward(self, record: Record) -> Tensor:  # type: ignore[override]
        return self.net(record.image)


class Own(UserDict[str, Tensor]):
    """As the encodings of other libraries: a mapping with a ``to``."""

    def to(self, device: torch.device) -> Own:
        return Own({key: value.to(device) for key, value in self.items()})


Pair = namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (seeded, IMAGES),
        (seeded, [[IMAGES]]),
        (seeded, iter([(IMAGES, 1, "name")])),
        (seeded, [Pair(IMAGES, 1)]),
        (seeded, DataLoader(TensorDataset(IMAGES, torch.zeros(8)), 8)),
        (Masked, [(IMAGES, torch.zeros(8))]),
        (TakesDict, [{"image": IMAGES}]),
        (TakesDict, [Own(image=IMAGES)]),
        (TakesRecord, [Record(IMAGES)]),
    ],
)
def test_batches_that_need_no_forward(model: Callable[[], nn.Module], batches: Any) -> None:
    found = recalibrate(model(), batches)
    torch.testing.assert_close(getattr(found, "net", found)[1].running_mean, mean_of(IMAGES))


@pytest.mark.parametrize(
    ("model", "batch", "forward"),
    [
        (seeded, {"image": IMAGES}, lambda model, batch: model(batch["image"])),
        (seeded, Own(image=IMAGES), lambda model, batch: model(batch["image"])),
        (seeded, Record(IMAGES), lambda model, batch: model(batch.image)),
        (seeded, (1, IMAGES), lambda model, batch: model(batch[1])),
        (TwoInputs, (IMAGES / 2, IMAGES / 2), lambda model, batch: model(*batch)),
        (TwoInputs, {"image": IMAGES, "other": 0}, lambda model, batch: model(**batch)),
        (Masked, (IMAGES * 2, torch.tensor(0.5), 1), lambda model, batch: model(*batch[:2])),
    ],
)
def test_batches_with_a_forward(model: Callable[[], nn.Module], batch: Any, forward: Any) -> None:
    found = recalibrate(model(), [batch], forward=forward)
    torch.testing.assert_close(getattr(found, "net", found)[1].running_mean, mean_of(IMAGES))


class OnMeta:
    """Keeps what it was moved to."""

    device: Any = None

    def to(self, device: torch.device) -> OnMeta:
        self.device = device
        return self


def test_everything_in_a_batch_is_moved() -> None:
    own = OnMeta()
    batch = {"a": [own], "b": Record(IMAGES), "c": (1, "name", None)}
    seen = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch)
        output: Tensor = model(batch["b"].image)
        return output

    recalibrate(seeded(), [batch], forward=forward)
    assert own.device == torch.device("cpu") and seen[0]["c"] == (1, "name", None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_defaults_do_not_matter(dtype: torch.dtype) -> None:
    model, layer = seeded(), AdderConv2d(2, 3, 3)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            recalibrate(model, [IMAGES, IMAGES])
            nothing = scale_adder_gradients_(layer)
            layer.weight.grad = layer.weight.detach().clone()
            scaled = scale_adder_gradients_(layer, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(model[1].running_mean, mean_of(IMAGES))
    assert nothing.to_dict() == {} and nothing.norms.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad.square().mean().sqrt(), torch.tensor(0.5))
    assert scaled.to_dict()["grad_norm/AdderConv2d"] == pytest.approx(float(layer.weight.norm()))


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    torch.testing.assert_close(recalibrate(model, IMAGES)[0].running_mean, IMAGES.mean((0, 2, 3)))


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (nn.Linear(2, 2), [torch.zeros(1, 2)], "no batch norm"),
        (norm_model(), [], "no batches"),
        (norm_model(), [()], "a batch is empty"),
        (nn.BatchNorm1d(2), [torch.randn(4, 2), torch.randn(1, 2)], "a batch is too small.*size"),
        (
            nn.InstanceNorm2d(2, track_running_stats=True),
            [torch.randn(4, 2, 1, 1)],
            "images are too small",
        ),
        (
            norm_model(),
            [{"image": IMAGES}],
            r"cannot be called with a dict of \['image'\]",
        ),
        (norm_model(), [[[IMAGES, IMAGES]]], "cannot be called with a list from a batch"),
        (norm_model(), [Record(IMAGES)], r"with a Record.*forward=lambda model, batch"),
        (TwoInputs(), [(IMAGES, IMAGES)], r"tensor of shape \(8, 3, 6, 6\).*missing 1 required"),
        (
            TwoInputs(),
            [(IMAGES, IMAGES, 1)],
            r"3 elements and TwoInputs.forward takes other",
        ),
        (Masked(), [(IMAGES, IMAGES, 1)], r"forward takes mask, scale beside its first input"),
    ],
)
def test_wrong_uses(model: nn.Module, batches: Any, words: str) -> None:
    with pytest.raises(AdderizeError, match=words):
        recalibrate(model, batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    recalibrate(model, [torch.randn(4, 1, 8, 8)])
    before = model[1].running_var.clone()
    with pytest.raises(AdderizeError, match="the statistics of 1 are not finite"):
        recalibrate(model, [torch.randn(4, 1, 8, 8), torch.full((4, 1, 8, 8), value)])
    assert torch.equal(model[1].running_var, before)
