"""A tiny adder network in Lightning, an optimizer that keeps what it sees, and the rule by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adderize import AdderConv2d, AdderLinear

ETA = 0.2
FILTERS = {"net.3.weight": 108, "net.6.weight": 240}


def make_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        AdderConv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        AdderLinear(16, 15),
        nn.BatchNorm1d(15),
        nn.Linear(15, 5),
    )


class RecordingSGD(torch.optim.SGD):
    """SGD that keeps a copy of the gradients at its true step, after any closure."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[Tensor | None]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.seen.append([None if p.grad is None else whole(p.grad).clone() for p in parameters])
        super().step()
        return loss


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Lit(pl.LightningModule):
    """``frozen_statistics`` keeps batch norms in eval mode: results do not depend on the batch."""

    def __init__(
        self, frozen_statistics: bool = False, optimizer: type | Callable[..., Any] = RecordingSGD
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = make_net()
        self.frozen_statistics = frozen_statistics
        self.optimizer = optimizer
        if frozen_statistics:
            self.train()

    def train(self, mode: bool = True) -> Lit:
        super().train(mode)
        for module in self.modules():
            if self.frozen_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.optimizer(
            self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
        )
        return optimizer


class ManualLit(Lit):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.before_step(optimizer)
        optimizer.step()

    def before_step(self, optimizer: Any) -> None:
        pass


def batches(count: int = 4, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count * size, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (count * size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=size)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    fixed = {"accelerator": "cpu", "devices": 1, "max_epochs": 1}
    return pl.Trainer(callbacks=list(callbacks), **(fixed | quiet | options))


def seen_by_optimizer(module: pl.LightningModule) -> list[dict[str, Tensor | None]]:
    optimizer = module.trainer.optimizers[0]
    names = [name for name, _ in module.named_parameters()]
    return [dict(zip(names, gradients, strict=True)) for gradients in optimizer.seen]


def check_norms(step: dict[str, Tensor | None], eta: float = ETA) -> None:
    for name, count in FILTERS.items():
        norm = step[name].norm().item()
        assert abs(norm / (eta * math.sqrt(count)) - 1) < 1e-5, (name, norm)


def gradients_by_hand(
    module: Lit, batch: list[Tensor], clip: Callable[[Any], Any] = lambda parameters: None
) -> dict[str, Tensor]:
    """Plain PyTorch: backward, clipping, then the formula in float64."""
    module.zero_grad()
    module.loss(batch).backward()
    clip(module.parameters())
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    for name, count in FILTERS.items():
        g = gradients[name].double()
        gradients[name] = (g * ETA * math.sqrt(count) / (g * g).sum().sqrt()).float()
    module.zero_grad()
    return gradients


def check_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
