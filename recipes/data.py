"""Batches of images for training: what all data sets have in common, and those in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from adderize.data import Dataset, ImageSet
from adderize.errors import AdderizeError
from recipes.augmentation import crop_and_flip, draw_crops
from recipes.sampling import Batch, EpochShuffle, InOrder, generator_of


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
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return ((images.to(torch.float32) / 255 - mean) / std).to(memory_format=self.memory_format)


class _Images(TorchDataset[tuple[Tensor, ...]]):
    """Whole batches of one tensor; with a seed also a crop an image, by seed and epoch."""

    def __init__(self, images: ImageSet, crop_seed: int | None) -> None:
        self.images, self.crop_seed = images, crop_seed
        self._crops: tuple[int, Tensor] | None = None

    def __getitem__(self, batch: Batch) -> tuple[Tensor, ...]:
        epoch, indices = batch
        drawn = self.images.images[indices], self.images.labels[indices]
        return drawn if self.crop_seed is None else (*drawn, self._crops_of(epoch)[indices])

    def _crops_of(self, epoch: int) -> Tensor:
        if self._crops is None or self._crops[0] != epoch:
            assert self.crop_seed is not None
            # The last number keeps these draws apart from those of the shuffle.
            generator = generator_of(self.crop_seed, epoch, 1)
            self._crops = epoch, draw_crops(len(self.images.labels), generator)
        return self._crops[1]


class InMemoryImages(ImageData):
    """A data set in memory: batches of (images, labels), sliced from one tensor.

    Images reach the device as bytes, are cropped and normalised there: (N, C, H, W) float32. What
    an image's crop is follows from the seed, the epoch and the image, in any number of processes.

    Args:
        dataset: the images; the test set also serves as validation set.
        batch_size: images a training step and process, at least 2.
        seed: of the training order and the augmentation.
        augment: whether training images are cropped and flipped at random.
        channels_last: the memory format of the batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        augment: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= batch_size <= len(dataset.train.labels):
            raise AdderizeError(
                f"--batch-size is {batch_size}; expected 2 to {len(dataset.train.labels)}, "
                f"the number of training images"
            )
        self.dataset, self.batch_size, self.seed, self.augment = dataset, batch_size, seed, augment
        self.name, self.num_classes = dataset.name, dataset.num_classes
        self.train_size, self.test_size = len(dataset.train.labels), len(dataset.test.labels)
        self.mean, self.std = dataset.mean, dataset.std
        self.input_size = tuple(dataset.test.images.shape[1:])
        if channels_last:
            self.memory_format = torch.channels_last

    def training_loader(self, rank: int = 0, processes: int = 1) -> DataLoader[tuple[Tensor, ...]]:
        sampler = EpochShuffle(self.train_size, self.batch_size, self.seed, rank, processes)
        return _loader(_Images(self.dataset.train, self.seed if self.augment else None), sampler)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        sampler = InOrder(self.test_size, self.batch_size, *self._process())
        return _loader(_Images(self.dataset.test, None), sampler)

    test_dataloader = val_dataloader

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, ...], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels, *crops = batch
        for crop in crops:
            images = crop_and_flip(images, crop)
        return self.normalized(images), labels


def _loader(images: _Images, sampler: Sampler[Batch]) -> DataLoader[tuple[Tensor, ...]]:
    # batch_size=None: each element of the sampler is already a whole batch. A loader without a
    # generator of its own draws from the global one, at other moments after a resume.
    return DataLoader(images, batch_size=None, sampler=sampler, generator=torch.Generator())
