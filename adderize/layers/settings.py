"""What the layers of a network compute with beside tensors: strides, paddings, eps, activations.

Networks with other settings may have the very same state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adderize.layers import Converted

# Constants of torch's layers that training alone sees, or that the tensors' shapes tell.
_UNTOLD = {
    "affine", "elementwise_affine", "embedding_dim", "head_dim", "in1_features", "in2_features",
    "in_channels", "in_features", "inplace", "momentum", "normalized_shape", "num_channels",
    "num_embeddings", "num_features", "out_channels", "out_features", "p", "return_indices",
}  # fmt: skip
# Layers that others of the same tensors and constants could stand for, and how they are called:
# batch norms of all dimensions are one, whether processes share their statistics or not.
_NAMED = {
    f"torch.nn.modules.{home}"
    for home in (
        "batchnorm", "channelshuffle", "flatten", "instancenorm", "normalization", "padding",
        "pixelshuffle", "pooling", "upsampling",
    )
}  # fmt: skip
_BATCH_NORM = "torch.nn.modules.batchnorm"


def settings_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What each layer computes with beside tensors, as torch's layers name it (``__constants__``),
    the ``kind`` of activations and of this package's layers, and which ``layer`` of torch a norm, a
    pooling or another one without filters is."""
    found = {name: (module, _settings(module)) for name, module in model.named_modules()}
    return {name: own for name, (module, own) in found.items() if own or not [*module.children()]}


def _settings(module: nn.Module) -> dict[str, Any]:
    names = [name for name in getattr(module, "__constants__", ()) if name not in _UNTOLD]
    values = {name: _plain(getattr(module, name, ...)) for name in names}
    settings = {name: value for name, value in values.items() if value is not ...}
    home = type(module).__module__
    # A plain layer and its converted form have the same settings.
    ours = home.startswith("adderize.") and not isinstance(module, Converted)
    if ours or home == "torch.nn.modules.activation":
        settings["kind"] = type(module).__name__
    if home in _NAMED:
        settings["layer"] = "BatchNorm" if home == _BATCH_NORM else type(module).__name__
    return settings


def differences(model: nn.Module, saved: Mapping[str, dict[str, Any]]) -> list[str]:
    """What a network's layers have otherwise than those of the saved one with the same names."""
    found = []
    for name, settings in settings_of(model).items():
        was = saved.get(name, {})
        both = [key for key in settings if key in was]
        if name in saved and "kind" in settings.keys() ^ was.keys():
            both.append("kind")
        # Folders of earlier versions name no layers; only what has no constants has no settings.
        if name in saved and (
            "layer" in was.keys() - settings or ("layer" in settings and not was)
        ):
            both.append("layer")
        found += [
            f"{name or 'the model'} has {key} {settings.get(key)} instead of {was.get(key)}"
            for key in both
            if settings.get(key) != was.get(key)
        ]
    return found


def _plain(value: Any) -> Any:
    """Numbers and strings, ``...`` for all else; a stride of (2, 2) is one of 2."""
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        if ... in items:
            return ...
        return items[0] if items and items == items[:1] * len(items) else items
    return value if type(value) in (type(None), bool, int, float, str) else ...
