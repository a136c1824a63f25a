"""A warning where adders are about to train a convolutional network's filters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdaptiveLearningRate, AdderConv2d, adderize
from tests.training.tiny_lit import Lit, batches, trainer


class Converted(Lit):
    """A small network, as convolutions or converted, whose checkpoints load into each other."""

    def __init__(self, adders: bool, **options: Any) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)]
        tail = [nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)]
        self.net = nn.Sequential(*layers, *tail)
        if adders:
            self.net = adderize(self.net, **options)


def told(module: Lit, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(AdaptiveLearningRate()).fit(module, batches(1), **options)
    return [str(w.message) for w in caught if "as a convolution's" in str(w.message)]


def test_a_convolutional_checkpoint_loaded_into_adders(tmp_path: Path) -> None:
    path = str(tmp_path / "cnn.ckpt")
    convolutional = Converted(adders=False)
    fitting = trainer()
    fitting.fit(convolutional, batches(1))
    fitting.save_checkpoint(path)
    loaded = Converted.load_from_checkpoint(path, adders=True)
    deviation = float(loaded.net[3].weight.detach().std(correction=0))
    (message,) = told(loaded)
    assert isinstance(loaded.net[3], AdderConv2d) and f"deviation of {deviation:.2g}," in message
    resumed = Converted(adders=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(AdaptiveLearningRate(), max_epochs=2).fit(resumed, batches(1), ckpt_path=path)
    assert any("as a convolution's" in str(warning.message) for warning in caught)


def small(module: Converted) -> None:
    with torch.no_grad():
        module.net[3].weight.mul_(0.01)


def transferred(module: Converted) -> None:
    small(module)
    module.net[3].gradient = "sign_input"


def frozen(module: Converted) -> None:
    small(module)
    module.net[3].requires_grad_(False)


@pytest.mark.parametrize("change", [lambda module: None, transferred, frozen])
@pytest.mark.parametrize("init", ["rescale", "normal"])
def test_filters_of_adders(init: str, change: Callable[[Converted], None]) -> None:
    module = Converted(adders=True, init=init)
    change(module)
    assert told(module) == []
