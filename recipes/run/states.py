"""Lightning's callbacks that keep weights, so that a run resumes to the same ones at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint


class AveragedWeights(EMAWeightAveraging):
    """Leaves the averages in the module, also where a fit resumes a training that has ended.

    There Lightning makes no step and calls no ``on_train_end``.
    """

    _pending = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._pending = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            self.on_train_end(trainer, pl_module)


class FolderCheckpoint(ModelCheckpoint):
    """Knows the best score again in a folder that was moved, where Lightning would begin anew."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = state_dict["dirpath"], self.dirpath

        def moved(path: str) -> str:
            return str(Path(str(new)) / Path(path).relative_to(old)) if path else path

        paths = {key: moved(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": new})
