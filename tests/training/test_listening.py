"""The rule begins with a training and ends with it, however that ends, and goes on with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as optim

from adderize import AdaptiveLearningRate
from adderize.training.adaptive_rate import AdderGradients
from adderize.training.stepping import ScaleAtEveryStep
from tests.training.moves import EVERY_STEP, LR, Raw, WatchesMoves, direct, moves, plain_sgd
from tests.training.tiny_lit import Lit, RecordingSGD, batches, make_net, trainer

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


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
