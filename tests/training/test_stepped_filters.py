"""The rule acts on the filters that the stepping optimizer holds, as they are by then."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.optim import Optimizer

from adderize import AdaptiveLearningRate, AdderConv2d, scale_adder_gradients_
from adderize.training.adaptive_rate import adder_filters
from adderize.training.stepping import ScaleAtEveryStep
from tests.training.moves import EVERY_STEP, LR, moves, plain_sgd
from tests.training.tiny_lit import Lit, ManualLit, RecordingSGD, batches, make_net, trainer

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


class TwoNetworks(ManualLit):
    """As a GAN: two optimizers take turns; both losses reach all parameters."""

    toggles = False

    def __init__(self) -> None:
        super().__init__()
        self.other = make_net()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()[batch_idx % 2]
        if self.toggles:
            self.toggle_optimizer(optimizer)
        self.manual_backward(
            self.loss(batch) + nn.functional.cross_entropy(self.other(batch[0]), batch[1])
        )
        optimizer.step()
        if self.toggles:
            self.untoggle_optimizer(optimizer)
        for each in self.optimizers():
            each.zero_grad()

    def configure_optimizers(self) -> Any:
        return plain_sgd(self.net.parameters()), plain_sgd(self.other.parameters())


class TwoToggledNetworks(TwoNetworks):
    toggles = True


@pytest.mark.parametrize("kind", [TwoNetworks, TwoToggledNetworks])
def test_two_optimizers_scale_their_own_filters(kind: type) -> None:
    on, off = [0.2, 0.0, 0.2], [0.0, 0.2, 0.0]
    assert moves(kind()) == {"net.3": on, "net.6": on, "other.3": off, "other.6": off}


def test_a_filter_in_two_optimizers() -> None:
    class Shared(ManualLit):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return plain_sgd(self.parameters()), plain_sgd([self.net[3].weight])

    assert moves(Shared()) == {"net.3": [0.4] * 3, "net.6": [0.2] * 3}


def test_frozen_filters_stay() -> None:
    module = Lit(optimizer=plain_sgd)
    module.net[3].requires_grad_(False)
    assert moves(module) == {"net.3": [0.0] * 3, "net.6": [0.2] * 3}


class Unfreezes(BaseFinetuning):
    """Gives the optimizer the first adder in the second epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[3], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[3], optimizer, lr=LR)


def test_filters_that_the_optimizer_gets_later() -> None:
    module = Lit(optimizer=lambda p, **_: plain_sgd([w for w in p if w.requires_grad]))
    found = moves(module, Unfreezes(), max_epochs=2)
    assert found == {"net.3": [0.0] * 3 + [0.2] * 3, "net.6": [0.2] * 6}


class ConvertsLater(pl.Callback):
    """A convolution becomes an adder in the second epoch, with the parameters it had."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            adder = AdderConv2d(3, 4, 3, padding=1)
            adder.weight = pl_module.net[3].weight
            pl_module.net[3] = adder


def test_layers_that_become_adders_later() -> None:
    module = Lit(optimizer=plain_sgd)
    module.net[3] = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    found = moves(module, ConvertsLater(), max_epochs=2)
    assert found == {"net.3": [0.2] * 3, "net.6": [0.2] * 6}


class InitialisedByItsFirstBatch(Lit):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 0:
            nn.init.normal_(self.net[3].weight)
        return super().training_step(batch, batch_idx)


class MomentumTarget(Lit):
    """A second network follows the first without a gradient, as in BYOL."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.target = copy.deepcopy(self.net)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            for mine, its in zip(self.target.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(its, 0.5)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [InitialisedByItsFirstBatch, MomentumTarget])
def test_filters_that_change_without_a_step(kind: type[Lit]) -> None:
    module = kind(optimizer=RecordingSGD)
    trainer(AdaptiveLearningRate(), accumulate_grad_batches=2).fit(module, batches())
    assert len(module.trainer.optimizers[0].seen) == 2


def test_another_network_s_optimizer_is_left_alone() -> None:
    class TrainsAnother(pl.Callback):
        raw: list[float]

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.raw = one_step_of_a_plain_loop()

    watch = TrainsAnother()
    assert moves(Lit(optimizer=plain_sgd), watch) == EVERY_STEP
    assert watch.raw == one_step_of_a_plain_loop()


def one_step_of_a_plain_loop(fail: bool = False) -> list[float]:
    module = Lit()
    optimizer = plain_sgd(module.parameters())
    module.loss(next(iter(batches()))).backward()
    optimizer.step()
    return [float(w.grad.norm()) for w in adder_filters(module).values()]


def test_gradients_that_are_written_without_a_version_are_scaled_too() -> None:
    net = make_net()
    rule = ScaleAtEveryStep(net, 0.3, lambda gradients: None)
    optimizer = plain_sgd(net.parameters())
    for layer in (net[3], net[6]):
        layer.weight.grad = torch.zeros_like(layer.weight)
    for _ in range(3):
        for layer in (net[3], net[6]):
            layer.weight.grad.data.copy_(torch.randn_like(layer.weight))
        optimizer.step()
        for layer in (net[3], net[6]):
            assert float(layer.weight.grad.square().mean().sqrt()) == pytest.approx(0.3)
    rule.remove()


def test_scaling_twice_by_hand_takes_the_last_rate() -> None:
    net = make_net()
    images, labels = next(iter(batches()))
    nn.functional.cross_entropy(net(images), labels).backward()
    for eta in (0.2, 0.5):
        scale_adder_gradients_(net, eta)
        assert float(net[3].weight.grad.square().mean().sqrt()) == pytest.approx(eta)
