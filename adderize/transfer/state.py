"""The file that lets a transfer go on where it was stopped."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adderize.arguments import own_path
from adderize.errors import AdderizeError, classed_line
from adderize.whole_files import replaced_file


class StateFile:
    """The layers that are done, written after each one.

    Args:
        path: the file; None keeps nothing.
        run: what decides the result, by name; a file of another run is refused.

    Raises:
        AdderizeError: a damaged file, one of another run, or a folder that does not exist.
    """

    def __init__(self, path: str | Path | None, run: Mapping[str, Any]) -> None:
        self.path = None if path is None else own_path(path)
        self.run = dict(run)
        self.done: dict[str, dict[str, Any]] = {}
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise AdderizeError(f"the state file's folder {self.path.parent} does not exist")
        if self.path.exists():
            self.done = self._read(self.path)

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            run, done = (dict(content)[key] for key in ("run", "done"))
        except Exception as error:
            raise AdderizeError(
                f"{path} cannot be read as the state of a transfer: {classed_line(error)}. Remove "
                "it to start anew"
            ) from error
        other = [name for name, value in self.run.items() if run.get(name) != value]
        if other:
            raise AdderizeError(
                f"{path} belongs to a transfer with other {', '.join(other)}: pass the same, with "
                "the model as it was at the start, or remove the file"
            )
        found: dict[str, dict[str, Any]] = done
        return found

    def add(self, name: str, entry: dict[str, Any]) -> None:
        if self.path is None:
            return
        self.done[name] = entry
        # Of a full disk torch.save says nothing that can be understood.
        content = io.BytesIO()
        torch.save({"run": self.run, "done": self.done}, content)
        with replaced_file(self.path) as unfinished:
            unfinished.write_bytes(content.getbuffer())


def fingerprint(content: Any) -> str:
    """The SHA-256 of a module's state, or of nested tensors."""
    if isinstance(content, nn.Module):
        content = dict(content.state_dict())
    digest = hashlib.sha256()
    leaves, spec = pytree.tree_flatten(content)
    digest.update(str(spec).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            values = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
