"""Batches of tensors in memory: shuffled by seed and epoch, normalised on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from adderize.errors import AdderizeError
from recipes.datasets import Dataset, ImageSet


class EpochShuffle(Sampler[Tensor]):
    """Batches of indices; the order follows from the seed and the epoch alone.

    So a run resumed at an epoch's boundary sees what the uninterrupted one would have seen.
    Lightning calls `set_epoch`. A last batch of one image is left out: batch norm cannot train
    on it.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batches, rest = divmod(self.size, self.batch_size)
        return batches + (rest > 1)

    def __iter__(self) -> Iterator[Tensor]:
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(self.size, generator=generator)
        yield from order.split(self.batch_size)[: len(self)]


class InMemoryImages(LightningDataModule):
    """A data set in memory: batches of (images, labels), sliced from one tensor.

    Images reach the device as bytes and are normalised there: (N, C, H, W) float32.

    Args:
        dataset: the images; the test set also serves as validation set.
        batch_size: images a training step, at least 2.
        seed: of the training order.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        super().__init__()
        if not 2 <= batch_size <= len(dataset.train.labels):
            raise AdderizeError(
                f"--batch-size is {batch_size}; expected 2 to {len(dataset.train.labels)}, "
                f"the number of training images"
            )
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self.dataset.train, self.seed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self.dataset.test)

    test_dataloader = val_dataloader

    def _loader(self, images: ImageSet, seed: int | None = None) -> DataLoader[tuple[Tensor, ...]]:
        data = TensorDataset(*images)
        if seed is None:
            batches: Sampler[Tensor] | list[Tensor] = list(
                torch.arange(len(data)).split(self.batch_size)
            )
        else:
            batches = EpochShuffle(len(data), self.batch_size, seed)
        # batch_size=None: each element of the sampler is already a whole batch of indices.
        return DataLoader(data, batch_size=None, sampler=batches)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.normalized(images), labels

    def normalized(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) to float32 with the data set's mean and deviation."""
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (self.dataset.mean, self.dataset.std)
        )
        return (images.to(torch.float32) / 255 - mean) / std
