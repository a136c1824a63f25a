"""Logit distillation: a student also follows a trained teacher's softened answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Distillation:
    """Hinton et al., Distilling the Knowledge in a Neural Network (2015).

    ``weight * T**2 * KL(teacher / T || student / T) + (1 - weight) * loss``. Not a module: the
    teacher is neither trained nor saved with the student.

    Args:
        teacher: gives logits (N, classes) for a batch.
        temperature: T, above 0.
        weight: of the teacher's part, 0 to 1.
        from_statistics, to_statistics: mean and deviation of pixels that the student's images, and
            the teacher's, are normalised with.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float,
        weight: float,
        from_statistics: tuple[Sequence[float], Sequence[float]],
        to_statistics: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in from_statistics)
        to_mean, to_std = (torch.tensor(values).view(-1, 1, 1) for values in to_statistics)
        self._scale, self._shift = std / to_std, (mean - to_mean) / to_std

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits for images normalised as the student's."""
        logits: Tensor = self.teacher(images * self._scale + self._shift)
        return logits

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The student's loss on the labels, mixed with its distance from the teacher."""
        T = self.temperature
        student = F.log_softmax(logits.float() / T, dim=1)
        teacher = F.log_softmax(self.teach(images).float() / T, dim=1)
        distance = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.weight * T**2 * distance + (1 - self.weight) * loss
