"""Checkpoints survive whatever interrupts the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from recipes.run.whole_files import WholeCheckpoints


def test_a_checkpoint_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for epoch in (1, 2):
        WholeCheckpoints().save_checkpoint({"epoch": epoch}, path)
        assert torch.load(path, weights_only=True) == {"epoch": epoch}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]

    def interrupted(self: Any, checkpoint: Any, path: Path, options: Any) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 2}
