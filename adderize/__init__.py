"""Adder networks for PyTorch and Lightning: convolutions without multiplications.

The public names are resolved on first use, so that ``import adderize`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adderize.adaptive_lr import scale_adder_gradients_
    from adderize.authors import load_authors_checkpoint
    from adderize.binary import BinaryConv2d
    from adderize.callbacks import AdaptiveLearningRate
    from adderize.counting import count
    from adderize.errors import AdderizeError
    from adderize.layers import AdderConv2d, AdderLinear
    from adderize.manifest import load_model, save_model
    from adderize.norms import recalibrate
    from adderize.surgery import adderize, binarize, plan, restore

__version__ = "0.1.0"

_HOMES = {
    "AdaptiveLearningRate": "adderize.callbacks",
    "AdderConv2d": "adderize.layers",
    "AdderLinear": "adderize.layers",
    "AdderizeError": "adderize.errors",
    "BinaryConv2d": "adderize.binary",
    "adderize": "adderize.surgery",
    "binarize": "adderize.surgery",
    "count": "adderize.counting",
    "load_authors_checkpoint": "adderize.authors",
    "load_model": "adderize.manifest",
    "plan": "adderize.surgery",
    "recalibrate": "adderize.norms",
    "restore": "adderize.surgery",
    "save_model": "adderize.manifest",
    "scale_adder_gradients_": "adderize.adaptive_lr",
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
