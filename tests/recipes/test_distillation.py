"""Distillation: the loss by its formula, and a teacher that sees its own normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from recipes.distillation import Distillation

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
