"""Networks by name, number of classes, start and kind of layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adderize import adderize, binarize, load_authors_checkpoint, load_model
from adderize.errors import AdderizeError
from adderize.models.by_name import build

PUBLISHED = "published"
LAYERS = ("adder", "cnn", "bnn")


def build_network(
    arch: str,
    num_classes: int,
    conversion: Mapping[str, Any] | None,
    *,
    binarization: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
) -> nn.Module:
    """A network as convolutions, as adders or as a binary network.

    Args:
        arch: as for :func:`adderize.models.by_name.build`.
        num_classes: width of the logits.
        conversion: options of :func:`adderize.adderize`; None for no adders.
        binarization: options of :func:`adderize.binarize`; None for no binary layers.
        options: more keyword arguments of the builder.
        pretrained: weights to start from, loaded before the conversion.

    Raises:
        AdderizeError: an unknown name, or weights that do not belong to it.
    """
    model = build(arch, num_classes=num_classes, **(options or {}))
    if pretrained is not None:
        load_pretrained(model, arch, pretrained)
    if conversion is not None:
        model = adderize(model, **conversion)
    return model if binarization is None else binarize(model, **binarization)


def load_pretrained(model: nn.Module, arch: str, source: str) -> nn.Module:
    """Load the weights of a trained network of the same architecture.

    Args:
        model: gets the weights.
        arch: its name.
        source: ``"published"`` for those of torchvision or timm (downloaded); the folder of a run
            or of :func:`adderize.save_model`; or a PyTorch file with a state dict, also under
            ``state_dict`` and with ``module.`` before every key.

    Raises:
        AdderizeError: no such weights, or weights of another architecture.
    """
    if source == PUBLISHED:
        return _load_published(model, arch)
    path = Path(source)
    if path.is_dir():
        return load_model(model, path / "model" if (path / "model").is_dir() else path)
    return load_authors_checkpoint(model, path)


def _load_published(model: nn.Module, arch: str) -> nn.Module:
    import timm
    import torchvision

    try:
        if arch.startswith("timm:"):
            state = timm.create_model(arch.removeprefix("timm:"), pretrained=True).state_dict()
        else:
            weights: Any = torchvision.models.get_model_weights(arch).DEFAULT
            state = weights.get_state_dict(progress=False)
    except Exception as error:
        raise AdderizeError(f"no published weights of {arch}: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise AdderizeError(f"the published weights of {arch} do not fit: {error}") from error
    return model
