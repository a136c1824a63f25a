"""Models by name, as every command takes them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from adderize.errors import AdderizeError

FORMS = "`resnet50` (torchvision), `timm:NAME` or `package.module:callable`"


def build(name: str, **options: Any) -> nn.Module:
    """A freshly initialised model; no weights are downloaded.

    Args:
        name: ``resnet50`` (torchvision), ``timm:NAME``, or ``package.module:callable``, where the
            callable returns a module; the current directory is importable.
        options: keyword arguments of the builder, such as ``num_classes``.

    Raises:
        AdderizeError: the name is unknown or its builder does not return a module.
    """
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), options)
    if ":" in name:
        return _from_callable(name, options)
    return _from_torchvision(name, options)


def _from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise AdderizeError(f"timm has no model {name!r}: see timm.list_models()")
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _from_torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models():
        raise AdderizeError(f"unknown model {name!r}; expected {FORMS}")
    # GoogLeNet and Inception warn about their slow default initialisation otherwise.
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    if "weights_backbone" not in options and name.split("_")[0] in _WITH_BACKBONE:
        options = {"weights_backbone": None, **options}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


_WITH_BACKBONE = {
    "deeplabv3", "fasterrcnn", "fcn", "fcos", "keypointrcnn", "lraspp", "maskrcnn", "retinanet",
    "ssd300", "ssdlite320",
}  # fmt: skip


def _from_callable(name: str, options: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        builder = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise AdderizeError(f"cannot find {name!r} ({error}); expected {FORMS}") from error
    model = builder if isinstance(builder, nn.Module) else builder(**options)
    if not isinstance(model, nn.Module):
        raise AdderizeError(f"{name!r} gave a {type(model).__name__}; expected a torch.nn.Module")
    return model
