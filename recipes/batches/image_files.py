"""Batches of photographs: decoded and augmented by worker processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from adderize.data.imagenet import Splits
from adderize.data.normalisation import IMAGENET
from adderize.data.photographs import Photographs
from recipes.batches.image_data import ImageData
from recipes.batches.sampling import Batch, EpochShuffle, InOrder, seed_of

# The validation crop's part of the resized image: 224 of 256.
_CROP = 0.875


class ImageFiles(ImageData):
    """Photographs for training on ImageNet: random resized crops and flips, or centre crops.

    Images reach the device as bytes and are normalised there: (N, 3, size, size) float32. What an
    image's crop is follows from the seed, the epoch and the image, in any number of processes and
    workers.

    Args:
        splits: the photographs.
        batch_size: images a training step and process, at least 2.
        seed: of the training order and the augmentation.
        size: height and width of the crops.
        workers: processes that decode; 0 decodes in the training process.
        channels_last: the memory format of the batches.
    """

    mean, std = IMAGENET

    def __init__(
        self,
        splits: Splits,
        batch_size: int,
        seed: int,
        *,
        size: int = 224,
        workers: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.splits, self.seed, self.workers = splits, seed, workers
        self.name, self.num_classes = splits.name, splits.num_classes
        self.train_size, self.test_size = len(splits.train.labels), len(splits.test.labels)
        self.input_size = (3, size, size)
        if channels_last:
            self.memory_format = torch.channels_last
        self._take_batch_size(batch_size)

    def training_loader(
        self, rank: int = 0, processes: int = 1
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        size = self.input_size[1]
        transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        sampler = EpochShuffle(self.train_size, self.batch_size, self.seed, rank, processes)
        return self._loader(_Decoded(self.splits.train, transform, self.seed), sampler)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        size = self.input_size[1]
        transform = v2.Compose([v2.Resize(round(size / _CROP)), v2.CenterCrop(size)])
        sampler = InOrder(self.test_size, self.batch_size, *self._process())
        return self._loader(_Decoded(self.splits.test, transform, self.seed), sampler)

    test_dataloader = val_dataloader

    def _loader(
        self, images: _Decoded, sampler: Sampler[Batch]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        # batch_size=None: each element of the sampler is a whole batch, which one worker decodes.
        return DataLoader(
            images,
            batch_size=None,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.normalized(images), labels


class _Decoded(TorchDataset[tuple[Tensor, Tensor]]):
    """Whole batches: (N, 3, H, W) uint8 and labels (N,)."""

    def __init__(self, photographs: Photographs, transform: v2.Transform, seed: int) -> None:
        self.photographs, self.seed = photographs, seed
        self.transform = v2.Compose([transform, v2.PILToTensor()])

    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        epoch, indices = batch
        images = [self._image(epoch, index) for index in indices.tolist()]
        labels = [self.photographs.labels[index] for index in indices.tolist()]
        return torch.stack(images), torch.tensor(labels)

    def _image(self, epoch: int, index: int) -> Tensor:
        picture = self.photographs.load(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, index, 1))
            image: Tensor = self.transform(picture)
        return image
