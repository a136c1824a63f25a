"""Schedules against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR

from recipes.schedules import schedule


def _rates(scheduler: LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def _optimizer() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=0.5)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("cosine", {}, lambda o: CosineAnnealingLR(o, 40)),
        ("poly", {"power": 0.9}, lambda o: PolynomialLR(o, 40, 0.9)),
        (
            "step",
            {"milestones": [0.5, 0.75], "gamma": 0.2},
            lambda o: MultiStepLR(o, [20, 30], 0.2),
        ),
        ("constant", {}, lambda o: MultiStepLR(o, [], 1.0)),
    ],
)
def test_the_fall_is_torchs(kind: str, options: dict[str, Any], expected: Any) -> None:
    rates = _rates(schedule(_optimizer(), kind, 40, **options), 40)
    assert rates == pytest.approx(_rates(expected(_optimizer()), 40))
    warm = _rates(schedule(_optimizer(), kind, 44, warmup_steps=4, **options), 44)
    assert warm[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert warm[4:] == pytest.approx(rates)
