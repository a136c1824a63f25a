"""The rule acts once on what each update sees, whoever makes the step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer

from adderize import AdaptiveLearningRate, AdderizeError
from tests.training.moves import EVERY_STEP, LR, Raw, direct, moves, plain_sgd
from tests.training.test_callback_logging import ListLogger
from tests.training.tiny_lit import Lit, ManualLit, RecordingSGD, batches, trainer

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def by_the_trainer(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
    backward()
    module.trainer.optimizers[0].step()


def from_inside_the_wrapper(module: Raw, _: Optimizer, backward: Callable[[], Tensor]) -> None:
    backward()
    module.optimizers().optimizer.step()


def closure_by_position(module: Raw, optimizer: Any, backward: Callable[[], Tensor]) -> None:
    assert optimizer.step(backward).ndim == 0


def closure_by_name(module: Raw, optimizer: Any, backward: Callable[[], Tensor]) -> None:
    assert optimizer.step(closure=backward).ndim == 0


def closure_of_the_wrapper(module: Raw, _: Optimizer, backward: Callable[[], Tensor]) -> None:
    module.optimizers().step(closure=backward)


def scaler(module: Raw, optimizer: Any, backward: Callable[[], Tensor]) -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(module.loss(next(iter(batches())))).backward()
    scaler.step(optimizer)
    scaler.update()


def unknown_to_the_trainer(module: Raw, _: Any, backward: Callable[[], Tensor]) -> None:
    backward()
    SGD(module.parameters(), lr=LR).step()


@pytest.mark.parametrize(
    "how",
    [
        *(direct, by_the_trainer, from_inside_the_wrapper),
        *(closure_by_position, closure_by_name, closure_of_the_wrapper),
        *(scaler, unknown_to_the_trainer),
    ],
)
def test_every_way_to_step_under_manual_optimisation(how: Callable[..., Any]) -> None:
    assert moves(Raw(how)) == EVERY_STEP


def test_a_step_that_the_scaler_skips_scales_nothing() -> None:
    def overflow(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
        scaler = GradScaler("cpu", init_scale=1024.0)
        optimizer.zero_grad()
        scaler.scale(module.loss(next(iter(batches()))) * torch.inf).backward()
        scaler.step(optimizer)

    logger = ListLogger()
    found = moves(Raw(overflow), logger=logger, log_every_n_steps=1)
    assert found == {"net.3": [0.0] * 3, "net.6": [0.0] * 3} and logger.rows == []


class StepsItself(Lit):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        closure()
        optimizer.optimizer.step()


def test_own_optimizer_step_under_automatic_optimisation() -> None:
    assert moves(StepsItself(optimizer=plain_sgd)) == EVERY_STEP


def clipping_hook(parameters: Any, **_: Any) -> SGD:
    optimizer = plain_sgd(parameters)

    def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nn.utils.clip_grad_value_(optimizer.param_groups[0]["params"], 1e-5)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def test_the_optimizer_s_own_hooks_come_first() -> None:
    assert moves(Raw(direct, clipping_hook)) == EVERY_STEP


class ScaleTwice(SGD):
    """Steps by another optimizer's step, as subclasses and wrappers do."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("kind", [ScaleTwice, RecordingSGD])
@pytest.mark.parametrize("make", [lambda kind: Lit(optimizer=kind), lambda kind: Raw(direct, kind)])
def test_steps_that_call_another_step_scale_once(kind: type, make: Callable[..., Any]) -> None:
    SGD([torch.zeros(1)])  # gives SGD.step its hooks
    logger = ListLogger()
    trainer(AdaptiveLearningRate(), logger=logger, log_every_n_steps=1).fit(make(kind), batches(2))
    assert len(logger.rows) == 2
    for _, row in logger.rows:
        assert row["adaptive_lr/net.3"] != pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("kind", [Lit, ManualLit])
def test_lookahead(kind: type[Lit]) -> None:
    module = kind(optimizer=lambda parameters, **_: Lookahead(plain_sgd(parameters), k=100))
    assert moves(module) == EVERY_STEP


def test_lbfgs_sees_scaled_gradients_at_each_call_of_its_closure() -> None:
    seen = []

    class SeesGradients(torch.optim.LBFGS):
        def _gather_flat_grad(self) -> Tensor:
            seen.append(float(module.net[3].weight.grad.square().mean().sqrt()))
            flat: Tensor = super()._gather_flat_grad()
            return flat

    module = Lit(optimizer=lambda p, **_: SeesGradients(p, lr=1e-3, max_iter=3))
    trainer(AdaptiveLearningRate()).fit(module, batches(1))
    assert len(seen) >= 3 and seen == pytest.approx([0.2] * len(seen))


class InBackward(ManualLit):
    """An optimizer a parameter, which steps as soon as the gradient is there."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))

    def on_train_start(self) -> None:
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.step_now)

    @staticmethod
    def step_now(parameter: Tensor) -> None:
        SGD([parameter], lr=LR).step()
        parameter.grad = None


def test_optimizers_that_step_in_backward() -> None:
    assert moves(InBackward()) == EVERY_STEP


def test_accumulation_by_hand() -> None:
    class EveryThird(ManualLit):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(self.loss(batch))
            if batch_idx == 2:
                self.optimizers().step()

    assert moves(EveryThird(optimizer=plain_sgd)) == {"net.3": [0, 0, 0.2], "net.6": [0, 0, 0.2]}


@pytest.mark.parametrize("averages", [False, True])
def test_schedulers_find_the_step_as_it_was(averages: bool) -> None:
    class Scheduled(Lit):
        def configure_optimizers(self) -> Any:
            optimizer = plain_sgd(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]

    averaging = [StochasticWeightAveraging(swa_lrs=LR, swa_epoch_start=1)] if averages else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = moves(Scheduled(), *averaging, max_epochs=2)
    assert found["net.3"][:6] == [0.2] * 6
    assert not [w for w in caught if "optimizer.step()" in str(w.message)]


def test_fused_optimizer_with_a_scaler_of_one_s_own() -> None:
    module = Raw(scaler, lambda p, **_: SGD(p, lr=LR, fused=True))
    with pytest.raises(AdderizeError, match="fused SGD unscales fp16 gradients inside its step"):
        trainer(AdaptiveLearningRate()).fit(module, batches())


def by_hand(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
    backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= LR * parameter.grad


def test_a_step_without_an_optimizer_is_an_error_at_once() -> None:
    module = Raw(by_hand)
    with pytest.raises(MisconfigurationException, match=r"missed a step.*net\.3.*torch\.optim"):
        trainer(AdaptiveLearningRate()).fit(module, batches())
    assert module.trainer.fit_loop.epoch_loop.batch_idx == 0
