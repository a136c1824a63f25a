"""Learning-rate schedules as factors of the initial rate, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("cosine", "poly", "step", "constant")


def schedule(
    optimizer: Optimizer,
    kind: str,
    steps: int,
    *,
    warmup_steps: int = 0,
    power: float = 0.9,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
) -> LambdaLR:
    """A linear warm-up from 0, then a fall over the remaining steps.

    Args:
        optimizer: whose learning rates are the peaks.
        kind: ``"cosine"`` (half a period, to 0), ``"poly"`` (``(1 - t) ** power``, to 0),
            ``"step"`` (times `gamma` at each of `milestones`) or ``"constant"``.
        steps: of the whole training.
        warmup_steps: of the linear rise.
        milestones: as fractions of the training after the warm-up.
    """
    falls: dict[str, Callable[[float], float]] = {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "poly": lambda t: float((1 - t) ** power),
        "step": lambda t: float(gamma ** sum(t >= milestone for milestone in milestones)),
        "constant": lambda t: 1.0,
    }
    fall = falls[kind]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return fall(min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0))

    return LambdaLR(optimizer, factor)
