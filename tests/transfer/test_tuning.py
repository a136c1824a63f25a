"""A short training after a transfer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError
from adderize.transfer.tuning import Tuning, fine_tune


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1), AdderConv2d(1, 8, 3, gradient="sign_input"), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def dark_and_bright(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images of noise around -1 and 1, and which they are."""
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise + (2 * labels - 1).view(-1, 1, 1, 1), labels


def test_it_learns_labels_and_a_teachers_answers() -> None:
    images, labels = dark_and_bright()
    teacher, student = network(), network()
    tuning = Tuning(epochs=20, batch_size=16)
    fine_tune(teacher, network(), images, labels, tuning, progress=False)
    assert (teacher(images).argmax(1) == labels).all()
    before = (student.eval()(images).argmax(1) == labels).float().mean()
    fine_tune(student, teacher, images, None, tuning, progress=False)
    assert before < 0.8
    assert (student(images).argmax(1) == labels).float().mean() > 0.95
    assert not student.training


def test_statistics_are_those_of_augmented_images() -> None:
    model = network()
    images = torch.ones(64, 1, 8, 8)
    labels = torch.zeros(64, dtype=torch.int64)
    fine_tune(model, network(), images, labels, Tuning(epochs=1, batch_size=16), progress=False)
    # A shift by up to 4 of 8 pixels, 9 of them alike, leaves 52 of 72 of each side; zeros come in.
    assert float(model[0].running_mean[0]) == pytest.approx((52 / 72) ** 2, abs=0.02)


def test_a_network_without_statistics() -> None:
    images, labels = dark_and_bright()
    model = network()
    model[0], model[2] = nn.Identity(), nn.InstanceNorm2d(8, affine=True)
    before = model[1].weight.detach().clone()
    fine_tune(model, network(), images, labels, Tuning(epochs=1, batch_size=16), progress=False)
    assert not model.training and not torch.equal(model[1].weight, before)


def test_a_training_that_diverges() -> None:
    images, labels = dark_and_bright()
    images[0] = torch.inf
    with pytest.raises(AdderizeError, match="diverged at step 1: lower the learning rate"):
        fine_tune(network(), network(), images, labels, Tuning(epochs=1), progress=False)
