"""Distillation: the loss by its formula, and a teacher that sees its own normalisation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import adderize, save_model
from adderize.checkpoints import named
from adderize.models import resnet20
from recipes import cifar, mnist, run
from recipes.batches import InMemoryImages
from recipes.distillation import Distillation, add_arguments, from_arguments

STATISTICS = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def _distillation(teacher: nn.Module, **options: Any) -> Distillation:
    arguments: dict[str, Any] = {"temperature": 3.0, "weight": 0.7, "from_statistics": STATISTICS,
                                 "to_statistics": STATISTICS, **options}  # fmt: skip
    return Distillation(teacher, **arguments)


def test_the_loss_is_the_formula() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    images, logits = torch.randn(6, 3, 4, 4), torch.randn(6, 5, requires_grad=True)
    loss = _distillation(teacher)(images, logits, torch.tensor(2.0))
    p = (teacher(images).double() / 3).softmax(1)
    q = (logits.double() / 3).softmax(1)
    distance = (p * (p / q).log()).sum(1).mean()
    assert loss.item() == pytest.approx((0.7 * 9 * distance + 0.3 * 2).item(), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    expected = 0.7 * 3 * (q - p) / 6
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_the_teacher_may_have_all_the_weight() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    assert parser.parse_args(["--kd-weight", "1"]).kd_weight == 1
    with pytest.raises(argparse.ArgumentError, match="not a number from 0 to 1"):
        parser.parse_args(["--kd-weight", "1.1"])


def test_the_teacher_is_in_eval_mode_and_not_trained() -> None:
    teacher = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    _distillation(teacher)
    assert not teacher[0].training
    assert not teacher[1].training
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_the_teacher_sees_its_own_normalisation() -> None:
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    own = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def normalised(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in statistics)
        return (pixels - mean) / std

    seen = _distillation(nn.Identity(), to_statistics=own).teach(normalised(STATISTICS))
    torch.testing.assert_close(seen, normalised(own), rtol=1e-5, atol=1e-5)


def test_a_finished_run_teaches_what_it_says(tmp_path: Path) -> None:
    """With the statistics of norms that it ends with: those of its checkpoint lag behind."""
    short = ["--epochs", "1", "--batch-size", "64", "--max-steps", "8"]
    metrics = mnist.train(["--data", "embedded", *short, "--output", str(tmp_path)])
    arguments = run.parse(mnist.make_parser(), ["--data", "embedded"])
    data = mnist._load(arguments)
    for name, value in (("kd_teacher", str(tmp_path)), ("kd_arch", None), ("kd_mean", None),
                        ("kd_arch_options", []), ("kd_std", None), ("kd_temperature", 1.0),
                        ("kd_weight", 0.3)):  # fmt: skip
        setattr(arguments, name, value)
    distillation = from_arguments(arguments, data)
    assert distillation is not None
    images, labels = data.dataset.test
    best = torch.cat([distillation.teach(data.normalized(i)).argmax(1) for i in images.split(500)])
    top1 = 100 * (best == labels).double().mean().item()
    assert top1 == pytest.approx(metrics["test.top1"], abs=0.01)


def test_a_network_of_timms_trained_here_sees_images_as_they_are(tmp_path: Path) -> None:
    """timm says 224 x 224 of it, which is what its own weights were trained on."""
    options = ["--data", "fake:64", "--batch-size", "32"]
    more = ["--config", "cifar-short", "--epochs", "1", "--layers", "cnn", "--max-steps", "1"]
    cifar.train([*options, *more, "--arch", "timm:resnet10t", "--output", str(tmp_path)])
    _, distillation = _from_options(*options, "--kd-teacher", str(tmp_path))
    assert _seen_by(distillation, torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_is_saved_without_a_run_teaches(form: str, tmp_path: Path) -> None:
    """A folder says which layers are adders; in a state dict none is taken for one."""
    network = adderize(resnet20()) if form == "folder" else resnet20()
    teacher = tmp_path / "teacher.pth"
    if form == "folder":
        save_model(network, teacher)
    else:
        torch.save(network.state_dict(), teacher)
    more = ("--kd-teacher", str(teacher), "--kd-arch", "resnet20")
    _, distillation = _from_options("--data", "fake:256", *more)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(distillation.teach(images), network.eval()(images))


def test_weights_that_timm_publishes_see_what_timm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def published(model: nn.Module, arch: str, source: str) -> nn.Module:
        assert source == named.PUBLISHED
        model.default_cfg = {"input_size": (3, 48, 40), "mean": (0.5, 0.4, 0.3),
                             "std": (0.25, 0.5, 0.75), "num_classes": 10}  # fmt: skip
        return model

    monkeypatch.setattr(named, "start_from", published)
    data, distillation = _from_options("--data", "fake:256", "--kd-teacher", "timm:resnet10t")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    seen = _seen_by(distillation, (torch.ones(1, 3, 32, 32) - mean) / std)
    expected = torch.tensor([0.5 / 0.25, 0.6 / 0.5, 0.7 / 0.75]).view(1, 3, 1, 1)
    torch.testing.assert_close(seen, expected.expand(1, 3, 48, 40), rtol=1e-5, atol=1e-5)


def _from_options(*options: str) -> tuple[InMemoryImages, Distillation]:
    arguments = run.parse(cifar._parser(), options)
    data = cifar._load(arguments)
    distillation = from_arguments(arguments, data)
    assert distillation is not None
    return data, distillation


def _seen_by(distillation: Distillation, images: torch.Tensor) -> torch.Tensor:
    """What the teacher gets."""
    distillation.teacher = nn.Identity()
    return distillation.teach(images)
