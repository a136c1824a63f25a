"""A network by its name or with its weights, whatever kind of file those are in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from adderize.arguments import own_path
from adderize.checkpoints.authors import (
    authors_part,
    convert_as_the_authors,
    holds_authors_filters,
    load_authors_weights,
)
from adderize.checkpoints.files import Stored, read_file
from adderize.checkpoints.folder_files import holds_integers
from adderize.checkpoints.folders import load_model
from adderize.checkpoints.hub import is_on_hub, local_folder, repository_of
from adderize.checkpoints.manifest import MANIFEST
from adderize.checkpoints.state_dicts import load_weights, own_part
from adderize.errors import AdderizeError, listed
from adderize.models import by_name
from adderize.surgery import Decision, adderize, binarize, plan
from adderize.surgery.options import Options
from adderize.surgery.small_filters import deviation_of_convolutions

PUBLISHED = "published"
INTEGERS = "integer network"
_SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".safetensors", ".bin")


class Loaded(NamedTuple):
    """A network, the architecture that it was built as, and what had to be assumed about it."""

    model: nn.Module
    arch: str
    note: str = ""


def load(
    target: str,
    arch: str | None = None,
    *,
    arch_options: Mapping[str, Any] | None = None,
    trusted: Collection[str] = (),
    otherwise: Mapping[str, Any] | None = None,
    **options: Any,
) -> Loaded:
    """Build a network, make its adders and load its weights.

    Args:
        target: a folder that ``save_model`` wrote (that of an integer network names no
            architecture), ``hf://owner/name`` for one on the Hugging Face Hub, or a recipe's run;
            a file: a checkpoint of the AdderNet authors' code, of Lightning (its
            ``hyper_parameters`` may name ``arch``, ``arch_options``, ``num_classes``,
            ``conversion`` and ``binarization``, as the recipes' do), or a state dict (PyTorch's or
            safetensors); or an architecture, as ``adderize plan`` takes it, for freshly
            initialised weights.
        arch: what the weights belong to, unless the checkpoint says so.
        arch_options: keyword arguments of the architecture's builder, where the checkpoint does
            not say.
        trusted: architectures of the form ``package.module:callable`` that a checkpoint may name;
            a file alone gets no code run but for torchvision's, timm's and this package's.
        otherwise: options for a plain state dict of which none are given.
        options: those of :func:`adderize.adderize`, where nothing else says which layers are
            adders: for architectures and plain state dicts.

    Raises:
        AdderizeError: nothing there, damaged files, an unknown architecture, weights that do not
            belong to it, or options beside what says which layers are adders.
    """
    path, more = local_folder(target), dict(arch_options or {})
    if holds_integers(saved_in(path)):
        _check_unsaid(path, options)
        return Loaded(load_model(saved_in(path)), INTEGERS)
    if path.is_dir():
        arch = _named(arch, path)
        _check_unsaid(path, options)
        return Loaded(load_model(by_name.build(arch, **more), saved_in(path)), arch)
    if path.is_file():
        stored = _believed(read_file(path), arch, path, trusted)
        arch = _named(stored.said.get("arch") or arch, path)
        if "conversion" in stored.said or holds_authors_filters(stored.state):
            _check_unsaid(path, options)
        model = _build(stored.said, arch, more)
        model, note = _with_weights(model, stored, path, arch, options or otherwise or {})
        return Loaded(model, arch, note)
    if arch is not None:
        raise AdderizeError(f"{target} does not exist; expected a checkpoint of {arch}")
    if path.suffix in _SUFFIXES:
        raise AdderizeError(f"{target} does not exist")
    return Loaded(_converted(by_name.build(target, **more), options), target)


def _check_unsaid(path: Path, options: Mapping[str, Any]) -> None:
    if options:
        raise AdderizeError(
            f"{path} says itself which layers are adders: leave out {', '.join(options)}"
        )


def has_weights(target: str, arch: str | None = None) -> bool:
    """Whether :func:`load` takes the target for weights, and not for an architecture by name."""
    path = own_path(target)
    known = path.exists() or is_on_hub(target) or path.suffix in _SUFFIXES
    return known or arch is not None


def is_integer_network(target: str) -> bool:
    """Whether :func:`load` finds an integer network there."""
    return holds_integers(saved_in(local_folder(target)))


def blank(
    target: str, arch: str | None = None, *, arch_options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A model without storage, on the meta device where its builder allows it.

    Args:
        target: as for :func:`adderize.models.by_name.build`, or the folder of a saved model.
        arch: what the saved model was built from.
        arch_options: keyword arguments of the architecture's builder.

    Raises:
        AdderizeError: an unknown name; a folder without an architecture, or of another one.
    """
    folder, more = local_folder(target), dict(arch_options or {})
    if not folder.is_dir():
        if folder.suffix in _SUFFIXES or ("/" in target and ":" not in target):
            what = "is a file" if folder.is_file() else "does not exist"
            raise AdderizeError(
                f"{target} {what}; expected an architecture, {by_name.FORMS}, or a folder that "
                "save_model wrote"
            )
        if arch is not None:
            raise AdderizeError(f"{target} does not exist; expected the folder of a saved {arch}")
        return by_name.blank(target, **more)
    if holds_integers(saved_in(folder)):
        return load_model(saved_in(folder))
    arch, folder = _named(arch, folder), saved_in(folder)
    try:
        return load_model(by_name.blank(arch, **more), folder)
    except AdderizeError:
        # Buffers that are not saved have no values on the meta device; other errors come again.
        return load_model(by_name.build(arch, **more), folder)


def start_from(model: nn.Module, arch: str, source: str) -> nn.Module:
    """Give a fresh network the weights of a trained one of the same architecture.

    Args:
        model: gets the weights, and the adders of a folder or checkpoint that has some.
        arch: its name.
        source: ``"published"`` for the weights of torchvision or timm (downloaded); the folder of a
            recipe's run or of :func:`adderize.save_model`; ``hf://owner/name``; or a file, as for
            :func:`load`.

    Raises:
        AdderizeError: no such weights, or weights of another architecture.
    """
    if source == PUBLISHED:
        return _start_from_published(model, arch)
    path = local_folder(source)
    if path.is_dir():
        return load_model(model, saved_in(path))
    return _with_weights(model, read_file(path), path, arch, {"exclude": "*"})[0]


def hub_name(arch: str, source: str) -> str:
    """``owner/name`` of the weights that :func:`start_from` takes; empty where they have none."""
    if is_on_hub(source):
        return repository_of(source)
    if source != PUBLISHED or not arch.startswith("timm:"):
        return ""
    import timm

    found = timm.get_pretrained_cfg(arch.removeprefix("timm:"))
    return str(getattr(found, "hf_hub_id", None) or "")


def _start_from_published(model: nn.Module, arch: str) -> nn.Module:
    import timm
    import torchvision

    try:
        if arch.startswith("timm:"):
            state = timm.create_model(arch.removeprefix("timm:"), pretrained=True).state_dict()
        else:
            weights: Any = torchvision.models.get_model_weights(arch).DEFAULT
            state = weights.get_state_dict(progress=False)
    except Exception as error:
        raise AdderizeError(
            f"no published weights of {arch}: {error}. Give a file of weights instead"
        ) from error
    load_weights(model, state, Path(f"the published {arch}"))
    return model


def saved_in(folder: Path) -> Path:
    """The folder itself, or the one that a recipe's run keeps its model in."""
    inner = folder / "model"
    return inner if inner.is_dir() and not (folder / MANIFEST).is_file() else folder


def _named(arch: str | None, path: Path) -> str:
    if arch is None and path.is_dir() and not (saved_in(path) / MANIFEST).is_file():
        raise AdderizeError(
            f"{path} is a folder without {MANIFEST}; expected one that save_model wrote, or an "
            f"architecture, {by_name.FORMS}"
        )
    if arch is None:
        raise AdderizeError(
            f"{path} holds weights and not the network's code: name what it was built from with "
            f"--arch, {by_name.FORMS}"
        )
    return arch


def _believed(stored: Stored, arch: str | None, path: Path, trusted: Collection[str]) -> Stored:
    """What Lightning's checkpoint says of itself counts, unless another architecture is named.

    Raises:
        AdderizeError: only the checkpoint names code of somebody's own, which would be run.
    """
    own = stored.said.get("arch")
    if own is None or (arch is not None and by_name.full_name(arch) == by_name.full_name(own)):
        return stored
    if arch is not None:
        note = f"{path} says that it belongs to {own}; it is taken as {arch}"
        return Stored(stored.state, {}, "; ".join(filter(None, (stored.note, note))))
    if not by_name.is_published(own) and own not in trusted:
        raise AdderizeError(
            f"{path} says that it belongs to {own}, code which is not run because a file names it: "
            f"if you trust it, give --arch {own} (for a teacher --kd-arch)"
        )
    return stored


def _build(said: Mapping[str, Any], arch: str, more: Mapping[str, Any]) -> nn.Module:
    classes = {"num_classes": said["num_classes"]} if "num_classes" in said else {}
    return by_name.build(arch, **{**more, **classes, **(said.get("arch_options") or {})})


def _with_weights(
    model: nn.Module, stored: Stored, path: Path, arch: str, options: Mapping[str, Any]
) -> tuple[nn.Module, str]:
    """The network with the adders and weights of a file, and what had to be assumed."""
    if holds_authors_filters(stored.state):
        state = authors_part(stored.state, model, path)
        model = convert_as_the_authors(model, state)
        load_authors_weights(model, state, path)
        return model, stored.note
    notes = [stored.note] if stored.note else []
    state, _ = own_part(stored.state, model.state_dict(), path)
    if "conversion" in stored.said:
        _check_options(stored.said, path)
        model = _converted(model, stored.said["conversion"])
        binarization = stored.said.get("binarization")
        model = model if binarization is None else binarize(model, **binarization)
    else:
        model = _converted(model, options)
        adders = sum(row.decision is Decision.ADDER for row in plan(model).rows)
        notes.append(
            f"{path} does not say which layers are adders: {adders} were taken as such, as "
            f"`adderize plan {arch}` lists them. Convolutions become adders with `adderize "
            "transfer`, and inspect and report take them with --exclude '*'"
        )
    load_weights(model, state, path)
    deviation = deviation_of_convolutions(model.modules())
    if "conversion" not in stored.said and deviation is not None:
        notes.append(
            f"are those weights a convolutional network's? The filters' standard deviation is "
            f"{deviation:.2g}, where adders start from 1 and grow; taken as adders, a "
            "convolution's filters compute nothing useful"
        )
    return model, "; ".join(notes)


def _check_options(said: Mapping[str, Any], path: Path) -> None:
    known = {option.name for option in fields(Options)}
    for key in ("conversion", "binarization"):
        if unknown := [name for name in said.get(key) or () if name not in known]:
            raise AdderizeError(
                f"{path} names options of a {key} that this version of adderize does not have, "
                f"{listed([*map(str, unknown)])}; if they are not adderize's, save the state dict "
                "as a file of its own"
            )


def _converted(model: nn.Module, options: Mapping[str, Any] | None) -> nn.Module:
    if options is None or not plan(model, **options).converted:
        return model
    return adderize(model, **options)
