"""Batches of images for training: what all data sets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from adderize.data.normalisation import normalised
from adderize.errors import AdderizeError
from recipes.batches.sampling import EpochShuffle


class ImageData(LightningDataModule, ABC):
    """What the recipes ask of a data set.

    Attributes:
        name: for people.
        train_size, test_size: numbers of images.
        num_classes: labels are 0 to one less.
        mean, std: of pixels in [0, 1] per channel, that batches are normalised with.
        input_size: (C, H, W) of an image.
        batch_size: images a training step and process.
        memory_format: of the batches.
    """

    name: str
    train_size: int
    test_size: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, ...]
    batch_size: int
    memory_format = torch.contiguous_format
    _statistics: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def training_loader(self, rank: int = 0, processes: int = 1) -> DataLoader[Any]:
        """Batches as :meth:`train_dataloader` gives them to one of some processes."""

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self.training_loader(*self._process())
        if self.trainer is not None and isinstance(loader.sampler, EpochShuffle):
            # On a resume Lightning sets the epoch only after worker processes got their first work.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.sampler.set_epoch(progress.processed)
        return loader

    def _process(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def recalibration_images(self, batches: int, device: torch.device) -> Iterator[Tensor]:
        """Training images of the first batches of an epoch, the same ones in every process."""
        for images, *rest in islice(self.training_loader(), batches):
            batch = (images.to(device), *rest)
            yield self.on_after_batch_transfer(batch, 0)[0]

    def normalized(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) to float32 with the data's mean and deviation."""
        statistics = self._statistics_on(images.device)
        return normalised(images, *statistics).to(memory_format=self.memory_format)

    def _statistics_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Copied once, for each copy waits for the device."""
        if self._statistics is None or self._statistics[0].device != device:
            mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
            self._statistics = mean, std
        return self._statistics

    def _take_batch_size(self, batch_size: int) -> None:
        if not 2 <= batch_size <= self.train_size:
            raise AdderizeError(
                f"--batch-size is {batch_size}; expected 2 to {self.train_size}, the number of "
                "training images"
            )
        self.batch_size = batch_size
