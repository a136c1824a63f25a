"""The files of a saved model's folder: written as one, read with their digest."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adderize.checkpoints.manifest import CARD, MANIFEST, WEIGHTS, Manifest
from adderize.checkpoints.model_card import MARK, ModelCard
from adderize.checkpoints.state_dicts import StateDict
from adderize.checkpoints.values import decoded
from adderize.errors import AdderizeError
from adderize.whole_files import UNFINISHED, unfinished_files


def write_files(
    folder: Path, tensors: dict[str, Tensor], manifest: Manifest, card: str | None
) -> None:
    """Write all files, or leave those that are there.

    Raises:
        AdderizeError: the folder cannot be written to.
    """
    try:
        with unfinished_files(folder) as unfinished:
            weights, description = unfinished / WEIGHTS, unfinished / MANIFEST
            readme = unfinished / CARD
            if card is not None:
                readme.write_text(card, encoding="utf-8")
            save_file(tensors, weights, metadata={"format": "pt"})
            description.write_text(replace(manifest, weights=_digest(weights)).to_json())
            # safetensors keeps its files from all other users.
            weights.chmod(stat.S_IMODE(description.stat().st_mode))
            weights.replace(folder / WEIGHTS)
            description.replace(folder / MANIFEST)
            if card is not None:
                readme.replace(folder / CARD)
    except (OSError, SafetensorError) as error:
        raise AdderizeError(f"cannot write to {folder}: {error}") from error


def card_text(model: nn.Module, folder: Path, card: ModelCard | None) -> str | None:
    """The text of the card; None where somebody's own stays."""
    present = folder / CARD
    try:
        if card is None and present.is_file() and MARK not in present.read_text():
            return None
    except (OSError, UnicodeDecodeError):
        return None
    return (card or ModelCard()).to_markdown(model)


def read_files(folder: Path) -> tuple[Manifest, StateDict]:
    """The manifest and the tensors of one save.

    Raises:
        AdderizeError: a missing or damaged file, or files of two saves.
    """
    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            advice = _interrupted(folder) or "expected a folder that save_model wrote"
            raise AdderizeError(f"{folder} has no {name}; {advice}")
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except AdderizeError as error:
        raise AdderizeError(f"{folder / MANIFEST} is {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AdderizeError(f"{folder / MANIFEST} cannot be read: {error}") from error
    try:
        tensors = load_file(folder / WEIGHTS)
        # Behind it: a save that ends meanwhile would bring the tensors of another one.
        if manifest.weights not in (None, _digest(folder / WEIGHTS)):
            advice = _interrupted(folder) or (
                "one of them was changed, or a later save was interrupted or ended meanwhile; load "
                "it again, or save the model again"
            )
            raise AdderizeError(
                f"{WEIGHTS} and {MANIFEST} in {folder} are not of one save: {advice}"
            )
    except (OSError, SafetensorError) as error:
        raise AdderizeError(f"{folder / WEIGHTS} is damaged: {error}") from error
    try:
        return manifest, _state_of(manifest, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise AdderizeError(f"{folder / MANIFEST} is damaged: {error!r}") from error


def _interrupted(folder: Path) -> str | None:
    """What to do where a save was killed when it had put only its weights in place."""
    for place in folder.glob(f"{UNFINISHED}*/{MANIFEST}"):
        with contextlib.suppress(AdderizeError, OSError, UnicodeDecodeError):
            manifest = Manifest.from_json(place.read_text(encoding="utf-8"))
            if manifest.weights == _digest(folder / WEIGHTS):
                return f"a save was interrupted, move {place} there to finish it"
    return None


def _state_of(manifest: Manifest, tensors: dict[str, Tensor]) -> StateDict:
    values = {name: decoded(value, tensors.pop) for name, value in (manifest.values or {}).items()}
    for alias, name in manifest.shared.items():
        if name not in tensors:
            raise ValueError(f"{alias} is shared with {name}, which is not among the weights")
    return StateDict({**tensors, **values})


def holds_integers(folder: Path) -> bool:
    """Whether a folder is that of an integer network; False where it is no saved model's at all."""
    try:
        return Manifest.from_json((folder / MANIFEST).read_text()).program is not None
    except (AdderizeError, OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
