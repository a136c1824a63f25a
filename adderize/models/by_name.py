"""Models by name, as every command takes them."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from adderize import models
from adderize.errors import AdderizeError, classed, one_line

FORMS = (
    "`resnet50` (torchvision), `resnet20` (adderize.models), `timm:NAME` or "
    "`package.module:callable`"
)
_SIMILAR = 3
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def build(name: str, **options: Any) -> nn.Module:
    """A freshly initialised model; no weights are downloaded.

    Args:
        name: ``resnet50`` (torchvision, or a network of :mod:`adderize.models`, such as
            ``resnet20``), ``timm:NAME``, or ``package.module:callable``, where the callable
            returns a module; the current directory is importable.
        options: keyword arguments of the builder, such as ``num_classes``.

    Raises:
        AdderizeError: the name is unknown, its builder does not take the options, or does not
            return a module.
    """
    name = full_name(name)
    try:
        if name.startswith("timm:"):
            return _from_timm(name.removeprefix("timm:"), options)
        if ":" in name:
            return _from_callable(name, options)
        return _from_torchvision(name, options)
    except AdderizeError:
        raise
    except Exception as error:
        if not options:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise AdderizeError(f"cannot build {name!r} with {given} ({one_line(error)})") from error


def options_from(pairs: Sequence[str]) -> dict[str, Any]:
    """``["shortcut=A", "logits_norm=false"]`` as keyword arguments of a builder.

    Raises:
        AdderizeError: something without a key.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise AdderizeError(f"{pair!r} is not KEY=VALUE, such as shortcut=A")
        # YAML 1.1 takes 1e-3 for a string, as it has no point.
        options[key] = float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
    return options


def full_name(name: str) -> str:
    """One name of each model: ``adderize.models:resnet20`` for ``resnet20``, and for
    ``recipes.models:resnet20``, where these networks were before."""
    package, colon, network = name.rpartition(":")
    own = not colon or package == "recipes.models"
    return f"adderize.models:{network}" if own and network in models.__all__ else name


def is_published(name: str) -> bool:
    """Whether a name means a network of torchvision, timm or this package, and no other code."""
    home, colon, network = full_name(name).partition(":")
    return not colon or home == "timm" or (home == "adderize.models" and network in models.__all__)


def _from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        similar = _similar(name, timm.list_models(), prefix="timm:")
        raise AdderizeError(f"timm has no model {name!r}{similar}: see timm.list_models()")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:
        # A tag of weights that there are none of, or a checkpoint_path of another network.
        raise AdderizeError(f"timm cannot build {name!r}: {one_line(error)}") from error
    _state_input_size(model, options)
    return model


def _state_input_size(model: nn.Module, options: dict[str, Any]) -> None:
    """What timm's model says of itself is of its published weights, whatever it was built with."""
    stated = getattr(model, "pretrained_cfg", None)
    if not isinstance(stated, dict) or not {"in_chans", "img_size"} & options.keys():
        return
    channels, *sides = stated["input_size"]
    given = options.get("img_size") or sides
    sides = [given, given] if isinstance(given, int) else given
    stated = {**stated, "input_size": (options.get("in_chans", channels), *sides)}
    for name in ("pretrained_cfg", "default_cfg"):
        setattr(model, name, stated)


def _from_torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        similar = _similar(name, [*known, *models.__all__])
        raise AdderizeError(f"unknown model {name!r}{similar}; expected {FORMS}")
    # GoogLeNet and Inception warn about their slow default initialisation otherwise.
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    if "weights_backbone" not in options and name.split("_")[0] in _WITH_BACKBONE:
        options = {"weights_backbone": None, **options}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _similar(name: str, known: Sequence[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, known, n=_SIMILAR, cutoff=0.75)
    return f" (similar: {', '.join(prefix + other for other in found)})" if found else ""


_WITH_BACKBONE = {
    "deeplabv3", "fasterrcnn", "fcn", "fcos", "keypointrcnn", "lraspp", "maskrcnn", "retinanet",
    "ssd300", "ssdlite320",
}  # fmt: skip


def _module_of(name: str) -> ModuleType:
    """The module that a model's builder is in."""
    home, colon, _ = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(home if colon else "torchvision")
    except (ImportError, ValueError) as error:
        raise AdderizeError(f"cannot find {name!r} ({error}); expected {FORMS}") from error
    except _OF_THEIR_CODE as error:
        raise _failed(f"the import of {home}", error) from error


# An exit, too: a script without a guard ends with one when it is imported.
_OF_THEIR_CODE = (Exception, SystemExit)


def _failed(what: str, error: BaseException) -> AdderizeError:
    return AdderizeError(f"{what} fails: {classed(error)}")


def _from_callable(name: str, options: dict[str, Any]) -> nn.Module:
    module, attribute = _module_of(name), name.partition(":")[2]
    try:
        builder = getattr(module, attribute)
    except AttributeError as error:
        raise AdderizeError(f"cannot find {name!r} ({error}); expected {FORMS}") from error
    try:
        model = builder if isinstance(builder, nn.Module) else builder(**options)
    except TypeError as error:
        raise AdderizeError(
            f"cannot call {name!r} ({error}); expected a callable that needs no arguments, or "
            "none but those of --arch-options"
        ) from error
    except AdderizeError:
        raise
    except _OF_THEIR_CODE as error:
        raise _failed(f"{name!r}", error) from error
    if not isinstance(model, nn.Module):
        raise AdderizeError(f"{name!r} gave a {type(model).__name__}; expected a torch.nn.Module")
    return model


def blank(name: str, **options: Any) -> nn.Module:
    """As :func:`build`, without storage: on the meta device where the builder allows it."""
    # Here, since modules may compute with tensors of their own when they are imported.
    _module_of(full_name(name))
    try:
        with torch.device("meta"):
            return build(name, **options)
    except Exception:
        # Some constructors compute with values, which tensors without storage do not have. Other
        # errors come again.
        return build(name, **options)


def own_input_size(model: nn.Module) -> tuple[int, ...] | None:
    """(C, H, W) of an example as the model itself states it: Lightning's ``example_input_array``,
    timm's ``default_cfg``, or an attribute ``input_size``; None where it does not."""
    example = getattr(model, "example_input_array", None)
    if isinstance(example, Tensor):
        return tuple(example.shape[1:])
    configuration = getattr(model, "default_cfg", None)
    stated = configuration.get("input_size") if isinstance(configuration, dict) else None
    stated = stated or getattr(model, "input_size", None)
    # Of networks for flat examples it may be a plain number.
    return tuple(stated) if stated and isinstance(stated, (tuple, list)) else None


def input_size(name: str, model: nn.Module) -> tuple[int, ...]:
    """(C, H, W) that a model is made for: its own statement, or that of torchvision's weights.

    Raises:
        AdderizeError: neither says.
    """
    own = own_input_size(model)
    if own is not None:
        return own
    side = getattr(model, "image_size", None)
    if side is None and ":" not in name:
        import torchvision

        known = name in torchvision.models.list_models()
        weights = torchvision.models.get_model_weights(name) if known else None
        weights = getattr(weights, "DEFAULT", None)
        keywords = getattr(getattr(weights, "transforms", None), "keywords", {})
        side = keywords.get("crop_size")
    if not isinstance(side, int):
        raise AdderizeError(
            f"{name} does not say how large its input is: pass --input, such as 3,224,224"
        )
    return (3, side, side)
