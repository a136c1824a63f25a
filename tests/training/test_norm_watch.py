"""Norms after adders while they train: the warning, and statistics before validation."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from adderize import AdaptiveLearningRate, AdderConv2d, AdderizeError, adderize
from adderize.training.norm_watch import warn_of_untrained_norms
from tests.training.tiny_lit import Lit, batches, trainer


def warnings_of_norms(module: pl.LightningModule, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(AdaptiveLearningRate(), **options).fit(module, batches())
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if text.startswith("Adder layers need a norm")]


class EvalFromSecondEpoch(Lit):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[4].eval()


def test_norms_in_eval_mode_are_named_once() -> None:
    (text,) = warnings_of_norms(Lit(frozen_statistics=True), max_epochs=2)
    assert "net.4 (in eval mode), net.7 (in eval mode)" in text
    assert "net.1" not in text


def test_norms_put_in_eval_mode_later() -> None:
    (text,) = warnings_of_norms(EvalFromSecondEpoch(), max_epochs=3)
    assert "net.4 (in eval mode)." in text


def test_frozen_norms_are_named() -> None:
    module = Lit()
    module.net[7].requires_grad_(False)
    (text,) = warnings_of_norms(module)
    assert "net.7 (frozen)" in text and "net.4" not in text


class OptimizerBeforeConversion(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.LazyLinear(5)
        )
        self.net(torch.zeros(1, *next(iter(batches()))[0].shape[1:]))
        self.made = torch.optim.SGD(self.parameters(), 0.1)
        adderize(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.made


def test_norms_that_were_inserted_behind_the_optimizers_back_are_named() -> None:
    (text,) = warnings_of_norms(OptimizerBeforeConversion())
    assert "net.1.norm (in no optimizer)" in text


class FrozenBatchNorm2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2))


def own_norm() -> nn.Module:
    layer = AdderConv2d(2, 2, 1)
    layer.norm = nn.BatchNorm2d(2).eval()
    return nn.Sequential(layer, nn.BatchNorm2d(2))


def frozen_filters() -> nn.Module:
    layer = AdderConv2d(2, 2, 1).requires_grad_(False)
    return nn.Sequential(layer, nn.BatchNorm2d(2).eval())


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrised() -> nn.Module:
    return after_adder(register_parametrization(nn.BatchNorm2d(2), "weight", Doubled()))


def after_adder(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(AdderConv2d(2, 2, 1), *modules)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (own_norm(), ["0.norm"]),
        (after_adder(nn.Sequential(nn.Identity(), nn.BatchNorm2d(2).eval())), ["1.1"]),
        (after_adder(FrozenBatchNorm2d()), ["1"]),
        (after_adder(nn.GroupNorm(1, 2).requires_grad_(False)), ["1"]),
        (after_adder(nn.GroupNorm(1, 2).eval()), []),
        (after_adder(nn.BatchNorm2d(2, affine=False)), []),
        (after_adder(nn.BatchNorm2d(2, track_running_stats=False).eval()), []),
        (after_adder(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2).eval()), []),
        (after_adder(nn.RMSNorm([2, 4, 4]).requires_grad_(False)), []),
        (after_adder(), []),
        (frozen_filters(), []),
        (parametrised(), []),
    ],
)
def test_which_norms_count(model: nn.Module, named: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        assert warn_of_untrained_norms(model, [optimizer]) == bool(named)
    assert len(caught) == len(named)
    assert all(f" {name} (" in str(caught[0].message) for name in named)


class WatchesStatistics(pl.Callback):
    """What validation sees, and the batches that training saw."""

    def __init__(self) -> None:
        self.mean: list[Tensor] = []
        self.filters: list[Tensor] = []
        self.training: list[bool] = []

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.mean.append(pl_module.net[4].running_mean.clone())
        self.filters.append(pl_module.net[3].weight.detach().clone())
        self.training.append(pl_module.training)


def statistics_by_hand(module: Lit, images: list[Tensor]) -> Tensor:
    """Mean over batches of what reaches net.4, batch norms on batch statistics."""
    means = []
    with torch.no_grad():
        for batch in images:
            first = nn.functional.batch_norm(
                module.net[0](batch), None, None, module.net[1].weight, module.net[1].bias, True
            )
            means.append(module.net[3](first.relu()).mean((0, 2, 3)))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_statistics_are_those_of_the_last_training_batches(inference_mode: bool) -> None:
    module, watch = Lit(), WatchesStatistics()
    trainer(
        AdaptiveLearningRate(recalibrate_before_validation=3),
        watch,
        inference_mode=inference_mode,
        limit_val_batches=1,
        num_sanity_val_steps=1,
    ).fit(module, batches(8), batches(2))
    sanity, validated = watch.mean
    assert torch.equal(sanity, torch.zeros(4))
    expected = statistics_by_hand(module, [images for images, _ in list(batches(8))[-3:]])
    torch.testing.assert_close(validated, expected, rtol=1e-4, atol=1e-4)
    assert watch.training == [False, False] and module.training
    assert torch.equal(watch.filters[-1], module.net[3].weight)
    assert module.net[4].momentum == 0.1


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({"val_check_interval": 1}, (5, 6, 7)),
        ({"limit_train_batches": 2, "max_epochs": 4}, (0, 1)),
        ({"limit_train_batches": 2, "max_epochs": 4, "check_val_every_n_epoch": 2}, (1, 0, 1)),
    ],
)
def test_frequent_validations_have_statistics_of_as_many_batches(
    options: dict[str, Any], last: tuple[int, ...]
) -> None:
    module, watch = Lit(), WatchesStatistics()
    callback = AdaptiveLearningRate(recalibrate_before_validation=3)
    trainer(callback, watch, num_sanity_val_steps=0, **options).fit(module, batches(8), batches(2))
    images = [images for images, _ in batches(8)]
    expected = statistics_by_hand(module, [images[index] for index in last])
    torch.testing.assert_close(watch.mean[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_training_goes_on_after_recalibration(inference_mode: bool) -> None:
    module, watch = Lit(), WatchesStatistics()
    trainer(
        AdaptiveLearningRate(recalibrate_before_validation=2),
        watch,
        max_epochs=2,
        val_check_interval=2,
        num_sanity_val_steps=0,
        inference_mode=inference_mode,
        limit_val_batches=1,
    ).fit(module, batches(8), batches(2))
    assert len(watch.mean) == 8
    assert module.trainer.global_step == 16
    assert all(p.isfinite().all() for p in module.parameters())


def test_filters_train_the_same_with_and_without_recalibration() -> None:
    plain, recalibrated = Lit(), Lit()
    options = {"max_epochs": 2, "num_sanity_val_steps": 0}
    trainer(AdaptiveLearningRate(), **options).fit(plain, batches(), batches(2))
    callback = AdaptiveLearningRate(recalibrate_before_validation=4)
    trainer(callback, **options).fit(recalibrated, batches(), batches(2))
    for a, b in zip(plain.parameters(), recalibrated.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(plain.net[4].running_mean, recalibrated.net[4].running_mean)
    assert not callback._recalibration._batches


@pytest.mark.parametrize("count", [-1, 2.0, True, None])
def test_wrong_number_of_batches(count: Any) -> None:
    with pytest.raises(AdderizeError, match="recalibrate_before_validation is"):
        AdaptiveLearningRate(recalibrate_before_validation=count)


def without_batch_norms() -> Lit:
    module = Lit()
    module.net = nn.Sequential(AdderConv2d(1, 5, 3), nn.GroupNorm(1, 5), nn.Flatten())
    return module


class WithoutForward(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lit = Lit()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.lit.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.lit.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_batch_norms, "Lit has no batch norm"),
        (WithoutForward, "WithoutForward defines no forward"),
    ],
)
def test_recalibration_that_cannot_work(make: Any, message: str) -> None:
    callback = AdaptiveLearningRate(recalibrate_before_validation=1)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(callback).fit(make(), batches(), batches())
