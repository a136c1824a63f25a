"""What two gloo processes do in test_lightning.py, and the modules that they train."""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from adderize import AdaptiveLearningRate, AdderConv2d, AdderizeError, adderize


def make_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


class ConvertedInInit(pl.LightningModule):
    net: nn.Sequential | None

    def __init__(self) -> None:
        super().__init__()
        self.net = adderize(make_net())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ConvertedInConfigureModel(ConvertedInInit):
    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = adderize(make_net())


class Sharded(ConvertedInConfigureModel):
    def configure_model(self) -> None:
        super().configure_model()
        mesh = self.device_mesh["data_parallel"]
        for block in self.net:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def batches() -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (16,), generator=generator)
    dataset = TensorDataset(images, labels)
    sampler = DistributedSampler(dataset, shuffle=False) if dist.is_initialized() else None
    return DataLoader(dataset, batch_size=4, sampler=sampler)


def train(module: pl.LightningModule, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[AdaptiveLearningRate()], accelerator="cpu", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, batches())
    return trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()
        for name, p in module.named_parameters()
    }


def ddp(folder: Path) -> dict[str, Any]:
    results = {}
    for kind in (ConvertedInInit, ConvertedInConfigureModel):
        module = kind()
        trainer = train(module, strategy=DDPStrategy(), devices=2)
        trainer.save_checkpoint(folder / f"{kind.__name__}.ckpt")
        results[kind.__name__] = weights(module)
    return results


def fsdp2(folder: Path) -> dict[str, Tensor]:
    module = Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    train(module, strategy=strategy, devices=2)
    assert isinstance(module.net[1][0], AdderConv2d)
    assert isinstance(module.net[2][0].norm.weight, DTensor)
    return weights(module)


def fsdp2_from_meta(folder: Path) -> float:
    with torch.device("meta"):
        net = adderize(make_net())
    for block in net:
        fully_shard(block)
    fully_shard(net)
    net.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    net(torch.randn(4, 1, 6, 6)).sum().backward()
    return float(net[1][0].weight.grad.full_tensor().norm())


def refusals(folder: Path) -> list[str]:
    sharded = make_net()
    fully_shard(sharded)
    part = make_net()
    fully_shard(part[1])
    messages = []
    for model in (nn.parallel.DistributedDataParallel(make_net()), sharded, part):
        try:
            adderize(model)
        except AdderizeError as error:
            messages.append(str(error))
    return messages


JOBS = [ddp, fsdp2, fsdp2_from_meta, refusals]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    store, limit = f"file://{folder}/store", timedelta(minutes=2)
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=limit)
    results: dict[str, Any] = {}
    for job in JOBS:
        try:
            results[job.__name__] = job(folder)
        except Exception:
            results[job.__name__] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
