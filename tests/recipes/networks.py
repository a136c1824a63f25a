"""Small networks, and the command lines by which the tests of the recipes name them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

BATCH_NORMS, GROUP_NORMS = (f"tests.recipes.networks:{name}_norms" for name in ("batch", "group"))


def arguments(output: Path, *more: str, arch: str = BATCH_NORMS) -> list[str]:
    return ["--data", "fake", "--arch", arch, "--config", "cifar-short", "--epochs", "2",
            "--batch-size", "64", "--num-threads", "1", "--output", str(output), *more]  # fmt: skip


def group_norms(num_classes: int = 10) -> nn.Module:
    """Nothing in it looks at other images of the batch."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.GroupNorm(8, 8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.GroupNorm(16, 16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


def batch_norms(num_classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """Two convolutions with batch norm, and dropout before the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, num_classes),
    )  # fmt: skip


def flat(num_classes: int = 10) -> nn.Module:
    """Pixels in, logits out."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
