"""The rule acts once on what each update sees, whoever makes the step, and on nothing else."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as optim

from adderize import AdaptiveLearningRate, AdderConv2d, AdderizeError, scale_adder_gradients_
from adderize.training.adaptive_rate import AdderGradients, adder_filters
from adderize.training.stepping import ScaleAtEveryStep
from tests.training.test_callback_logging import ListLogger
from tests.training.tiny_lit import Lit, ManualLit, RecordingSGD, batches, make_net, trainer

LR = 0.1


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Any:
    yield
    assert not optim._global_optimizer_pre_hooks


class WatchesMoves(pl.Callback):
    """How far each filter moved in each batch, as a root mean square over the learning rate."""

    def __init__(self) -> None:
        self.moves: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.before = {n: w.detach().clone() for n, w in adder_filters(pl_module).items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for name, weight in adder_filters(pl_module).items():
            move = (weight.detach() - self.before[name]).square().mean().sqrt() / LR
            self.moves.setdefault(name, []).append(round(float(move), 4))


def moves(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    watch = WatchesMoves()
    trainer(AdaptiveLearningRate(), *callbacks, watch, **options).fit(module, batches(3))
    return watch.moves


EVERY_STEP = {"net.3": [0.2] * 3, "net.6": [0.2] * 3}


def plain_sgd(parameters: Any, **_: Any) -> SGD:
    return SGD(parameters, lr=LR)


class Raw(ManualLit):
    """A step made by ``how(module, optimizer, backward)``."""

    def __init__(self, how: Callable[..., Any], optimizer: Callable[..., Any] = plain_sgd) -> None:
        super().__init__(optimizer=optimizer)
        self.how = how

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.how(self, optimizer, backward)


def direct(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
    backward()
    optimizer.step()


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


def test_two_callbacks_of_unlike_classes_are_refused() -> None:
    class Mine(AdaptiveLearningRate):
        pass

    with pytest.raises(MisconfigurationException, match=r"two callbacks.*Mine"):
        trainer(AdaptiveLearningRate(), Mine(0.1)).fit(Lit(), batches())


def test_fitting_again_and_another_module() -> None:
    watch, first, second = WatchesMoves(), Lit(optimizer=plain_sgd), Lit(optimizer=plain_sgd)
    run = trainer(AdaptiveLearningRate(), watch)
    run.fit(first, batches(3))
    run.fit_loop.max_epochs = 2
    run.fit(first, batches(3))
    trainer(run.callbacks[0], watch).fit(second, batches(3))
    assert watch.moves == {"net.3": [0.2] * 9, "net.6": [0.2] * 9}


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_in_the_step_nothing_is_scaled(error: type[BaseException]) -> None:
    class Breaks(SGD):
        def step(self, closure: Any = None) -> None:
            raise error("broken")

    with pytest.raises((error, SystemExit)):
        trainer(AdaptiveLearningRate()).fit(Raw(direct, lambda p, **_: Breaks(p)), batches())
    assert not optim._global_optimizer_pre_hooks


def test_a_step_after_a_broken_one() -> None:
    class BreaksOnce(SGD):
        broken = False

        def step(self, closure: Any = None) -> Any:
            if not self.broken:
                self.broken = True
                raise RuntimeError("broken")
            return super().step(closure)

    def again(module: Raw, optimizer: Optimizer, backward: Callable[[], Tensor]) -> None:
        backward()
        try:
            optimizer.step()
        except RuntimeError:
            backward()
            optimizer.step()

    assert moves(Raw(again, lambda p, **_: BreaksOnce(p, lr=LR))) == EVERY_STEP


def test_copies_of_the_optimizer_have_no_rule() -> None:
    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            optimizer = trainer.optimizers[0]
            assert len(optimizer._optimizer_step_pre_hooks) == 1
            for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
                assert not twin._optimizer_step_pre_hooks

    trainer(AdaptiveLearningRate(), Copies()).fit(Lit(optimizer=SGD), batches(1))


def test_resuming_in_the_middle_of_an_accumulation(tmp_path: Path) -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    options = {"accumulate_grad_batches": 2}
    trainer(AdaptiveLearningRate(), Saves(), **options).fit(Lit(), batches(6))
    module = Lit(optimizer=RecordingSGD)
    path = tmp_path / "middle.ckpt"
    trainer(AdaptiveLearningRate(), **options).fit(module, batches(6), ckpt_path=path)
    seen = [step[4].square().mean().sqrt() for step in module.trainer.optimizers[0].seen]
    assert len(seen) >= 1 and torch.allclose(torch.stack(seen), torch.tensor(0.2))


def test_no_training_batches_and_validation_alone() -> None:
    callback = AdaptiveLearningRate(recalibrate_before_validation=2)
    trainer(callback, limit_train_batches=0).fit(Lit(), batches(), batches())
    module = Lit()
    before = copy.deepcopy(module.state_dict())
    trainer(callback).validate(module, batches(), verbose=False)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_listening_without_lightning() -> None:
    found: list[AdderGradients] = []
    net = make_net()
    rule = ScaleAtEveryStep(net, 0.3, found.append)
    optimizer = plain_sgd(net.parameters())
    images, labels = next(iter(batches()))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        assert float(net[3].weight.grad.square().mean().sqrt()) == pytest.approx(0.3)
    optimizer.step()
    assert [gradients.names for gradients in found] == [["3", "6"]] * 2
    rule.remove()
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
    assert float(net[3].weight.grad.square().mean().sqrt()) != pytest.approx(0.3)
    assert len(found) == 2


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
