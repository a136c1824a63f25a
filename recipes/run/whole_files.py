"""Checkpoints that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from adderize.whole_files import replaced_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint and then renames.

    Lightning writes into the system's temporary folder, and moves: a copy where that is another
    file system, which a kill can cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with replaced_file(Path(path)) as unfinished:
            super().save_checkpoint(checkpoint, unfinished, storage_options)
