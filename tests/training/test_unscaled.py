"""Gradients that a gradient scaler still has to unscale: refused, or scaled in the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision as TrainerPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adderize import AdderConv2d, AdderizeError, scale_adder_gradients_

LR, ETA = 0.5, 0.2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layer = AdderConv2d(2, 3, 3)
    return nn.Sequential(layer, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))


class Step:
    """One step in float16 under Fabric, with a place for the call of the rule."""

    def __init__(self, **options: Any) -> None:
        scaler = torch.amp.GradScaler("cpu")
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        self.fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
        self.net = network()
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=LR, **options)
        self.model, self.optimizer = self.fabric.setup(self.net, self.sgd)

    def backward(self) -> None:
        logits = self.model(torch.randn(4, 2, 6, 6))
        self.fabric.backward(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])))

    def moved(self, before: Tensor) -> float:
        """The root mean square of the filters' change, in units of lr * eta."""
        change = (self.net[0].weight.detach() - before).double()
        return math.sqrt(float(change.square().mean())) / (LR * ETA)


CALLS: list[Callable[[Step], Any]] = [
    lambda step: scale_adder_gradients_(step.model, ETA),
    lambda step: scale_adder_gradients_(step.model, ETA, optimizer=step.optimizer),
    lambda step: scale_adder_gradients_(step.model, ETA, optimizer=step.sgd),
    lambda step: scale_adder_gradients_(step.net, ETA, optimizer=step.optimizer),
]


@pytest.mark.parametrize("call", CALLS)
def test_scaled_gradients_are_refused(call: Callable[[Step], Any]) -> None:
    step = Step()
    step.backward()
    before = step.net[0].weight.grad.clone()
    with pytest.raises(AdderizeError, match=r"still scaled: the GradScaler of _?Fabric"):
        call(step)
    assert torch.equal(step.net[0].weight.grad, before)


@pytest.mark.parametrize("call", CALLS)
def test_after_unscaling_the_filters_move_by_lr_times_eta(call: Callable[[Step], Any]) -> None:
    step = Step()
    for _ in range(2):
        before = step.net[0].weight.detach().clone()
        step.optimizer.zero_grad()
        step.backward()
        step.fabric.clip_gradients(step.model, step.optimizer, max_norm=5.0)
        call(step)
        step.optimizer.step()
        assert step.moved(before) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("call", CALLS)
def test_in_the_step_the_filters_move_by_lr_times_eta(call: Callable[[Step], Any]) -> None:
    step = Step()
    step.optimizer.register_step_pre_hook(lambda *_: call(step) and None)
    for _ in range(2):
        before = step.net[0].weight.detach().clone()
        step.optimizer.zero_grad()
        step.backward()
        step.optimizer.step()
        assert step.moved(before) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("call", CALLS[1:])
def test_a_fused_optimizer_unscales_too_late(call: Callable[[Step], Any]) -> None:
    step = Step(fused=True)
    step.optimizer.register_step_pre_hook(lambda *_: call(step) and None)
    step.backward()
    with pytest.raises(AdderizeError, match=r"the fused (Fabric)?SGD unscales fp16 gradients"):
        step.optimizer.step()


def test_two_optimizers_are_told_apart() -> None:
    step = Step()
    other = step.fabric.setup_optimizers(torch.optim.SGD(step.net[3].parameters(), lr=LR))
    step.backward()
    step.fabric.clip_gradients(step.model, other, max_norm=5.0)
    with pytest.raises(AdderizeError, match="gradients are still scaled"):
        scale_adder_gradients_(step.model, ETA, optimizer=step.optimizer)
    step.fabric.clip_gradients(step.model, step.optimizer, max_norm=5.0)
    assert scale_adder_gradients_(step.model, ETA, optimizer=step.optimizer).names


def test_a_scaler_that_is_off_does_no_harm() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", enabled=False))
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    net = network()
    model, _ = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=LR))
    fabric.backward(model(torch.randn(4, 2, 6, 6)).square().mean())
    assert len(scale_adder_gradients_(model, ETA).names) == 1


class Manual(LightningModule):
    """Calls the rule by itself, before the step or in the hook within it."""

    def __init__(self, in_the_step: bool, by_optimizer: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = network()
        self.in_the_step, self.by_optimizer = in_the_step, by_optimizer
        self.changes: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)

    def scale(self, optimizer: Any) -> None:
        if self.by_optimizer:
            scale_adder_gradients_(self.net, ETA, optimizer=optimizer)
        else:
            scale_adder_gradients_(self, ETA)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, before = self.optimizers(), self.net[0].weight.detach().clone()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        if not self.in_the_step:
            self.scale(optimizer)
        optimizer.step()
        change = (self.net[0].weight.detach() - before).double()
        self.changes.append(math.sqrt(float(change.square().mean())) / (LR * ETA))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.in_the_step:
            self.scale(optimizer)


@pytest.mark.parametrize("by_optimizer", [True, False])
@pytest.mark.parametrize("in_the_step", [True, False])
def test_lightning_s_scaler(in_the_step: bool, by_optimizer: bool) -> None:
    module = Manual(in_the_step, by_optimizer)
    plugin = TrainerPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", plugins=[plugin], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = [(torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    batches = DataLoader(data, batch_size=None)
    if in_the_step:
        trainer.fit(module, batches)
        assert module.changes == pytest.approx([1, 1], rel=1e-4)
    else:
        with pytest.raises(AdderizeError, match="still scaled: the GradScaler of"):
            trainer.fit(module, batches)
