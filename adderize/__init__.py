"""Adder networks for PyTorch and Lightning: convolutions without multiplications.

The public names are resolved on first use, so that ``import adderize`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adderize.callbacks import AdaptiveLearningRate
    from adderize.checkpoints.authors import load_authors_checkpoint
    from adderize.checkpoints.folders import load_model, save_model
    from adderize.counting import count
    from adderize.errors import AdderizeError
    from adderize.layers import AdderConv2d, AdderLinear
    from adderize.layers.binary import BinaryConv2d
    from adderize.surgery import adderize, binarize, plan, restore
    from adderize.training.adaptive_rate import scale_adder_gradients_
    from adderize.training.recalibration import recalibrate

__version__ = "0.1.0"

_HOMES = {
    "AdaptiveLearningRate": "adderize.callbacks",
    "AdderConv2d": "adderize.layers",
    "AdderLinear": "adderize.layers",
    "AdderizeError": "adderize.errors",
    "BinaryConv2d": "adderize.layers",
    "adderize": "adderize.surgery",
    "binarize": "adderize.surgery",
    "count": "adderize.counting",
    "load_authors_checkpoint": "adderize.checkpoints",
    "load_model": "adderize.checkpoints",
    "plan": "adderize.surgery",
    "recalibrate": "adderize.training.recalibration",
    "restore": "adderize.surgery",
    "save_model": "adderize.checkpoints",
    "scale_adder_gradients_": "adderize.training.adaptive_rate",
}

__all__ = [
    "AdaptiveLearningRate",
    "AdderConv2d",
    "AdderLinear",
    "AdderizeError",
    "BinaryConv2d",
    "adderize",
    "binarize",
    "count",
    "load_authors_checkpoint",
    "load_model",
    "plan",
    "recalibrate",
    "restore",
    "save_model",
    "scale_adder_gradients_",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adderize' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
