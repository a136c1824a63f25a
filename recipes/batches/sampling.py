"""Which images make a batch: a function of the seed and the epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from adderize.errors import AdderizeError

# An epoch's number, and a batch of indices.
Batch = tuple[int, Tensor]


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, such as a seed, an epoch and an index."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def generator_of(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*numbers))


class EpochShuffle(Sampler[Batch]):
    """Batches of indices, with their epoch; the order follows from the seed and the epoch alone.

    So a run resumed at an epoch's boundary sees what the uninterrupted one would have seen.
    Lightning calls `set_epoch`. Several processes share the images of one shuffle: together their
    batches are those of one process with a batch as large as all of theirs. A last batch that would
    leave a process with less than two images is left out: batch norm cannot train on one.

    Args:
        size: number of images.
        batch_size: images a batch and process.
        seed: of the shuffle.
        rank, processes: which process this is, and how many there are.
        device: of the indices; the order is the same on each.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0
        self.rank, self.processes, self.device = rank, processes, device

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batches, rest = divmod(self.size, self.batch_size * self.processes)
        return batches + (rest // self.processes > 1)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(self.size, generator=generator_of(self.seed, self.epoch))
        order = order.to(self.device or order.device)
        for batch in order.split(self.batch_size * self.processes)[: len(self)]:
            even = len(batch) - len(batch) % self.processes
            yield self.epoch, batch[self.rank : even : self.processes]


class InOrder(Sampler[Batch]):
    """Batches of all indices in order, each in one of the processes.

    All processes have as many batches: a sharded network (FSDP2) is collected in all of them for
    each forward pass, and one more in some of them would wait for the others forever.

    Raises:
        AdderizeError: fewer indices than processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if size < processes:
            raise AdderizeError(
                f"{size} test images cannot be shared by {processes} processes: use fewer --devices"
            )
        own = torch.arange(rank, size, processes, device=device)
        count = -(-size // (batch_size * processes))
        batches = own.split(batch_size)
        self.batches = batches if len(batches) == count else own.tensor_split(count)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return ((0, batch) for batch in self.batches)
