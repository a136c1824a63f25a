"""Batches of images of data sets in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from adderize.data import Dataset, ImageSet
from adderize.data.augmentation import Augmentation
from adderize.errors import AdderizeError
from recipes.batches.image_data import ImageData
from recipes.batches.sampling import Batch, EpochShuffle, InOrder, generator_of

# Augmented at once, which bounds what that takes of a device's memory beside the images.
_AT_ONCE = 4096


class _Images(TorchDataset[tuple[Tensor, ...]]):
    """Whole batches of one tensor; with an augmentation also what it draws, by seed and epoch.

    `prepared`: batches are augmented already, all images of an epoch before its first batch. That
    is for a device whose memory holds them: in each batch it would take some twenty launches.
    """

    def __init__(
        self, images: ImageSet, seed: int, augment: Augmentation | None, prepared: bool = False
    ) -> None:
        self.images, self.seed, self.augment, self.prepared = images, seed, augment, prepared
        self._of_epoch: tuple[int, Tensor] | None = None

    def __getitem__(self, batch: Batch) -> tuple[Tensor, ...]:
        epoch, indices = batch
        images, labels = self.images
        if self.augment is None:
            return images[indices], labels[indices]
        of_epoch = self._in_epoch(epoch, self.augment)[indices]
        if self.prepared:
            return of_epoch, labels[indices]
        return images[indices], labels[indices], of_epoch

    def _in_epoch(self, epoch: int, augment: Augmentation) -> Tensor:
        """What is drawn for each image; where they are prepared, the augmented images."""
        if self._of_epoch is None or self._of_epoch[0] != epoch:
            self._of_epoch = None
            # The last number keeps these draws apart from those of the shuffle.
            generator = generator_of(self.seed, epoch, 1)
            result = augment.draw(len(self.images.labels), generator)
            result = result.to(self.images.labels.device)
            if self.prepared:
                parts = zip(self.images.images.split(_AT_ONCE), result.split(_AT_ONCE), strict=True)
                result = torch.cat([augment.apply(*part) for part in parts])
            self._of_epoch = epoch, result
        return self._of_epoch[1]


class InMemoryImages(ImageData):
    """A data set in memory: batches of (images, labels), sliced from one tensor.

    Images reach the device as bytes, are augmented and normalised there: (N, C, H, W) float32. What
    an image's augmentation draws follows from the seed, the epoch and the image, in any number of
    processes.

    Args:
        dataset: the images; the test set also serves as validation set.
        batch_size: images a training step and process, at least 2.
        seed: of the training order and the augmentation.
        augment: what happens to training images at random.
        channels_last: the memory format of the batches.
        on_device: whether the whole data set is copied to the training's device first, and each
            epoch's images are augmented before its first batch, so that no step waits for a copy or
            for the host; the batches are the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        augment: Augmentation | None = None,
        channels_last: bool = False,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.on_device = on_device
        self.dataset, self.seed, self.augment = dataset, seed, augment
        self.name, self.num_classes = dataset.name, dataset.num_classes
        self.train_size, self.test_size = len(dataset.train.labels), len(dataset.test.labels)
        self._take_batch_size(batch_size)
        self.mean, self.std = dataset.mean, dataset.std
        self.input_size = tuple(dataset.test.images.shape[1:])
        if channels_last:
            self.memory_format = torch.channels_last

    def setup(self, stage: str) -> None:
        """Lightning calls it in each process once the device is known."""
        if not self.on_device or self.trainer is None:
            return
        device = self.trainer.strategy.root_device
        try:
            train, test = (
                ImageSet(*(tensor.to(device) for tensor in split))
                for split in (self.dataset.train, self.dataset.test)
            )
        except torch.OutOfMemoryError as error:
            raise AdderizeError(
                f"{self.name} does not fit into the memory of {device}: leave out --data-on-device"
            ) from error
        self.dataset = self.dataset._replace(train=train, test=test)

    def training_loader(self, rank: int = 0, processes: int = 1) -> DataLoader[tuple[Tensor, ...]]:
        device = self.dataset.train.labels.device
        sampler = EpochShuffle(self.train_size, self.batch_size, self.seed, rank, processes, device)
        images = _Images(self.dataset.train, self.seed, self.augment, prepared=self.on_device)
        return _loader(images, sampler)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        device = self.dataset.test.labels.device
        sampler = InOrder(self.test_size, self.batch_size, *self._process(), device)
        return _loader(_Images(self.dataset.test, self.seed, None), sampler)

    test_dataloader = val_dataloader

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, ...], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels, *drawn = batch
        if self.augment and drawn:
            images = self.augment.apply(images, *drawn)
        return self.normalized(images), labels


def _loader(images: _Images, sampler: Sampler[Batch]) -> DataLoader[tuple[Tensor, ...]]:
    # batch_size=None: each element of the sampler is already a whole batch. A loader without a
    # generator of its own draws from the global one, at other moments after a resume.
    return DataLoader(images, batch_size=None, sampler=sampler, generator=torch.Generator())
