"""Adder networks for PyTorch and Lightning: convolutions without multiplications.

The package is its own main function, ``adderize(model)``: ``import adderize`` and ``from adderize
import adderize`` give one and the same object, whatever else is imported, and when. Its other
public names and its modules (``adderize.plan(model)``, ``adderize.functional``) are loaded on first
use, so that importing it stays light.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from adderize import callbacks, checkpoints, counting, errors, layers, surgery
    from adderize.callbacks import AdaptiveLearningRate
    from adderize.checkpoints import load_authors_checkpoint, load_model, save_model
    from adderize.counting import count
    from adderize.errors import AdderizeError
    from adderize.layers import AdderConv2d, AdderLinear, BinaryConv2d
    from adderize.surgery import binarize, plan, restore
    from adderize.training import recalibration
    from adderize.training.adaptive_rate import scale_adder_gradients_
    from adderize.training.recalibration import recalibrate

__version__ = "0.1.0"

_HOMES = {
    "AdaptiveLearningRate": "adderize.callbacks",
    "AdderConv2d": "adderize.layers",
    "AdderLinear": "adderize.layers",
    "AdderizeError": "adderize.errors",
    "BinaryConv2d": "adderize.layers",
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
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"adderize.{name}"):
        return importlib.import_module(f"adderize.{name}")
    raise AttributeError(f"module 'adderize' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _main() -> Callable[..., Any]:
    from adderize import surgery

    return surgery.adderize


class _Package(ModuleType):
    """The class of this package: a module that is called as :func:`adderize.surgery.adderize`."""

    if TYPE_CHECKING:
        __call__ = staticmethod(surgery.adderize)
        AdaptiveLearningRate = callbacks.AdaptiveLearningRate
        AdderConv2d = layers.AdderConv2d
        AdderLinear = layers.AdderLinear
        AdderizeError = errors.AdderizeError
        BinaryConv2d = layers.BinaryConv2d
        binarize = staticmethod(surgery.binarize)
        count = staticmethod(counting.count)
        load_authors_checkpoint = staticmethod(checkpoints.load_authors_checkpoint)
        load_model = staticmethod(checkpoints.load_model)
        plan = staticmethod(surgery.plan)
        recalibrate = staticmethod(recalibration.recalibrate)
        restore = staticmethod(surgery.restore)
        save_model = staticmethod(checkpoints.save_model)
    else:

        @property
        def __call__(self):
            return _main()

        @property
        def __signature__(self):
            return inspect.signature(_main())

        @property
        def __doc__(self):
            main = _main()
            call = f"{main.__name__}{inspect.signature(main)}"
            return f"{_DESCRIPTION}\n{call}\n\n{inspect.getdoc(main)}"

    # A module cannot be pickled or copied, a function can.
    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)


_DESCRIPTION = __doc__
adderize: _Package = sys.modules[__name__]  # type: ignore[assignment]
adderize.__class__ = _Package
