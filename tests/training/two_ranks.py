"""What two gloo processes do in test_distributed.py; each job returns tensors to compare."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from adderize import (
    AdaptiveLearningRate,
    AdderConv2d,
    AdderizeError,
    AdderLinear,
    scale_adder_gradients_,
)
from adderize.callbacks import ShiftNorms
from tests.training.tiny_lit import Lit, ManualLit, batches, seen_by_optimizer, trainer, whole

Steps = list[dict[str, Tensor | None]]


def my_batches(count: int, size: int) -> DataLoader:
    """Rank r reads images r, r + 2, ... in order; Lightning's own sampler would shuffle."""
    dataset = batches(count, size).dataset
    return DataLoader(dataset, batch_size=size, sampler=DistributedSampler(dataset, shuffle=False))


def lightning_ddp(kind: type[Lit] = Lit, **options: Any) -> Steps:
    module = kind(frozen_statistics=True)
    callback = AdaptiveLearningRate()
    trainer(callback, strategy=DDPStrategy(), devices=2, **options).fit(module, my_batches(6, 2))
    return seen_by_optimizer(module)


def lightning_ddp_manual() -> Steps:
    return lightning_ddp(ManualLit)


def lightning_ddp_accumulating() -> Steps:
    return lightning_ddp(accumulate_grad_batches=3)


class ShardedLit(Lit):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[3], self.net[6]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def lightning_fsdp2() -> dict[str, Any]:
    module = ShardedLit(frozen_statistics=True)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer(AdaptiveLearningRate(), strategy=strategy, devices=2).fit(module, my_batches(6, 2))
    assert isinstance(module.net[3].weight, DTensor)
    shard = module.net[3].weight.to_local().shape[0]
    weights = {name: whole(p.detach()) for name, p in module.named_parameters()}
    return {"steps": seen_by_optimizer(module), "weights": weights, "filters_here": shard}


class CpuFSDP(FSDPStrategy):
    """Passes the Trainer's own refusal of FSDP on a CPU."""


def lightning_fsdp1() -> str:
    strategy = CpuFSDP(process_group_backend="gloo")
    try:
        trainer(AdaptiveLearningRate(), strategy=strategy, devices=2).fit(Lit(), batches())
    except MisconfigurationException as error:
        return str(error)
    return "no error"


def recalibration(module: Lit, strategy: Strategy) -> Tensor:
    """After a validation whose statistics come from both ranks' batches."""
    callback = AdaptiveLearningRate(recalibrate_before_validation=2)
    module.net[0].bias.requires_grad_(False).zero_()
    trainer(callback, strategy=strategy, devices=2, num_sanity_val_steps=0).fit(
        module, my_batches(4, 4), batches(2, 4)
    )
    conv, norm = module.net[0], module.net[1]
    return torch.cat([norm.running_mean, norm.running_var, whole(conv.weight.detach()).flatten()])


def recalibration_ddp() -> Tensor:
    return recalibration(Lit(), DDPStrategy())


def recalibration_fsdp2() -> Tensor:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return recalibration(ShardedLit(), strategy)


def shift_norms_fsdp2() -> Tensor:
    """The scales of the norms after a training that ends with a validation."""
    module = ShardedLit()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    callbacks = AdaptiveLearningRate(recalibrate_before_validation=2), ShiftNorms(1, after=0.5)
    fitting = trainer(*callbacks, strategy=strategy, devices=2)
    fitting.fit(module, my_batches(4, 2), batches(1, 2))
    state = module.state_dict()
    norms = [(f"net.{index}.", module.net[index].eps) for index in (4, 7)]
    return torch.cat([
        whole(state[f"{name}weight"]) / (state[f"{name}running_var"] + eps).sqrt()
        for name, eps in norms
    ])  # fmt: skip


def plain_ddp() -> Steps:
    """Two microbatches, the first without synchronisation."""
    module = Lit(frozen_statistics=True)
    model = DistributedDataParallel(module)
    (first, first_labels), (second, second_labels) = my_batches(4, 2)
    with model.no_sync():
        nn.functional.cross_entropy(model(first), first_labels).backward()
    nn.functional.cross_entropy(model(second), second_labels).backward()
    scale_adder_gradients_(model)
    return [{name: p.grad for name, p in module.named_parameters()}]


def sharded_layers() -> nn.Sequential:
    """One filter for two ranks: the second rank's shard is empty."""
    torch.manual_seed(3)
    return nn.Sequential(AdderConv2d(1, 1, 3), AdderConv2d(1, 5, 2), AdderLinear(6, 7))


def fsdp2_norms(mesh_shape: tuple[int, ...], names: tuple[str, ...]) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    net = sharded_layers()
    expected = [layer.weight.detach().clone() for layer in net]
    for layer in net:
        fully_shard(layer, mesh=mesh)
        layer.weight.grad = layer.weight.detach().clone()
    with CommDebugMode() as communication:
        result = scale_adder_gradients_(net, 0.2)
    return {
        "collectives": communication.get_total_counts(),
        "norms": result.norms,
        "gradients": [layer.weight.grad.full_tensor() for layer in net],
        "expected": expected,
    }


def fsdp2_one_dimension() -> dict[str, Any]:
    return fsdp2_norms((2,), ("data",))


def fsdp2_hybrid_replicated() -> dict[str, Any]:
    return fsdp2_norms((2, 1), ("replicate", "shard"))


def fsdp2_hybrid_sharded() -> dict[str, Any]:
    return fsdp2_norms((1, 2), ("replicate", "shard"))


def message_of(make: Callable[[], nn.Module]) -> str:
    try:
        scale_adder_gradients_(make())
    except AdderizeError as error:
        return str(error)
    return "no error"


def fsdp1(use_orig_params: bool) -> nn.Module:
    return FullyShardedDataParallel(
        sharded_layers(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )


def partial_gradient() -> nn.Module:
    net = sharded_layers()[2:]
    fully_shard(net[0])
    mesh = net[0].weight.device_mesh
    net[0].weight.grad = None
    partial = DTensor.from_local(torch.ones(7, 6), mesh, [Partial()])
    del net[0]._parameters["weight"]
    net[0].weight = nn.Parameter(partial.detach().clone())
    net[0].weight.grad = partial
    return net


def refused() -> list[str]:
    makes = [lambda: fsdp1(True), lambda: fsdp1(False), partial_gradient]
    return [message_of(make) for make in makes]


JOBS = [
    lightning_ddp,
    lightning_ddp_manual,
    lightning_ddp_accumulating,
    lightning_fsdp2,
    lightning_fsdp1,
    recalibration_ddp,
    recalibration_fsdp2,
    shift_norms_fsdp2,
    plain_ddp,
    fsdp2_one_dimension,
    fsdp2_hybrid_replicated,
    fsdp2_hybrid_sharded,
    refused,
]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    limit = timedelta(minutes=2)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=limit)
    results: dict[str, Any] = {}
    for job in JOBS:
        try:
            results[job.__name__] = job()
        except Exception:
            results[job.__name__] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
