"""What the documentation's examples take for given: a network, its teacher, images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adderize import adderize

_SIZE = (3, 16, 16)


def given() -> dict[str, Any]:
    """Names and values, small enough for every example to take seconds."""
    teacher = _Network().eval()
    pixels = torch.randint(256, (16, *_SIZE), dtype=torch.uint8)
    images = (pixels / 255 - 0.5) / 0.2
    batches = DataLoader(TensorDataset(images, torch.arange(16) % 10), batch_size=16)
    return {
        "teacher": teacher,
        "model": adderize(teacher, inplace=False),
        "pixels": pixels,
        "images": images,
        "batches": batches,
        "training_batches": batches,
        "calibration_batches": batches,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }


class _Network(nn.Sequential):
    input_size = _SIZE

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, inputs in (("stem", 3), ("layer1", 8), ("layer2", 8)):
            convolution = nn.Conv2d(inputs, 8, 3, padding=1, bias=False)
            layers[name] = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU())
        layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        layers["fc"] = nn.Linear(8, 10)
        super().__init__(layers)
