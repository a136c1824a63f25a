"""Norms whose scales are rounded to powers of two at the end of a training."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler
from torch import Tensor, nn

from adderize import AdderizeError
from adderize.callbacks import ShiftNorms
from adderize.integer import multiplication_free
from adderize.training.shift_norms import round_norm_scales_
from tests.training.tiny_lit import Lit, batches, make_net, trainer

ROUNDED = (4, 7)


def nearest_sum(value: float, terms: int) -> float:
    """The greedy sum of signed powers of two, by trying all of them."""
    total = 0.0
    for _ in range(terms):
        powers = [sign * 2.0**e for sign, e in itertools.product((1, -1), range(-40, 20))]
        total += min(powers, key=lambda power: abs(value - total - power))
    return total


def scales(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    return norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()


class Uneven(Lit):
    """Its norms start with scales that are no powers of two."""

    def __init__(self) -> None:
        super().__init__()
        # Its mean would be rounded with the norms.
        self.net[5][0] = nn.MaxPool2d(3)
        for index in (1, *ROUNDED):
            nn.init.uniform_(self.net[index].weight, 0.6, 0.9)


def check_rounded(module: Uneven, terms: int) -> None:
    for index in ROUNDED:
        found = scales(module.net[index])
        expected = torch.tensor([nearest_sum(float(s), terms) for s in found]).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


class Watching(pl.Callback):
    """Compares each norm's output with the rounded scale's, computed in float64."""

    def __init__(self, terms: int) -> None:
        self.terms, self.compared, self.rounded = terms, 0, []

    def on_train_batch_start(self, _: Any, module: Any, *rest: Any) -> None:
        self.handles = [
            module.net[index].register_forward_hook(self._compare_with(scales(module.net[index])))
            for index in (1, *ROUNDED)
        ]

    def on_train_batch_end(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _compare_with(self, before: Tensor) -> Any:
        def hook(norm: Any, inputs: Any, output: Tensor) -> None:
            x = inputs[0].detach().double().transpose(0, 1).flatten(1)
            normed = (x - x.mean(1, keepdim=True)) / (
                x.var(1, unbiased=False, keepdim=True) + norm.eps
            ).sqrt()
            found = output.detach().double().transpose(0, 1).flatten(1)
            weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
            target = torch.tensor([nearest_sum(float(s), self.terms) for s in before])
            exact = torch.allclose(found, normed * weight[:, None] + bias[:, None], atol=1e-4)
            weight = weight * target.double() / before
            rounded = torch.allclose(found, normed * weight[:, None] + bias[:, None], atol=1e-4)
            assert exact != rounded
            self.rounded.append(rounded)

        return hook


def test_the_last_part_of_a_training_runs_with_rounded_scales() -> None:
    watching = Watching(1)
    trainer(ShiftNorms(1, after=0.5), watching).fit(Uneven(), batches(4))
    # The norm behind the kept convolution stays as it is.
    assert watching.rounded == [False] * 6 + [False, True, True] * 2


class TwoOptimizers(Uneven):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        return [torch.optim.SGD(part, lr=0.01) for part in (parameters[:4], parameters[4:])]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()
        self.manual_backward(self.loss(batch))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


class AccumulatingByHand(Uneven):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.manual_backward(self.loss(batch) / 4)
        if batch_idx % 4 == 3:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        (TwoOptimizers, []),
        (AccumulatingByHand, []),
        (Uneven, [GradientAccumulationScheduler({0: 4, 1: 1})]),
        (Uneven, [GradientAccumulationScheduler({0: 1, 1: 4})]),
    ],
)
def test_a_part_of_the_training_whatever_its_steps_are(
    kind: type[Uneven], others: list[pl.Callback]
) -> None:
    module, watching = kind(), Watching(1)
    trainer(ShiftNorms(1, after=0.75), watching, *others, max_epochs=2).fit(module, batches(8))
    assert watching.rounded == [False] * 36 + [False, True, True] * 4
    check_rounded(module, 1)


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_rounded(first: bool) -> None:
    averaging = EMAWeightAveraging(decay=0.9)
    order = [ShiftNorms(1, after=0.5), averaging]
    plain, module = Uneven(), Uneven()
    trainer(*(order if first else order[::-1])).fit(module, batches(4))
    check_rounded(module, 1)
    trainer(ShiftNorms(1, after=0.5)).fit(plain, batches(4))
    assert not torch.allclose(module.net[3].weight, plain.net[3].weight, rtol=1e-4)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_the_trained_network_loses_nothing_when_it_is_rounded(terms: int) -> None:
    module = Uneven()
    trainer(ShiftNorms(terms, after=0)).fit(module, batches(4))
    network = module.net.eval()
    check_rounded(module, terms)
    assert not any(network[index]._forward_hooks for index in ROUNDED)
    images = next(iter(batches()))[0]
    free = multiplication_free(network, norm_terms=terms, filter_terms=24)
    torch.testing.assert_close(free(images), network(images), rtol=1e-4, atol=1e-4)


def test_gradients_pass_the_rounding() -> None:
    module = Uneven()
    callback = ShiftNorms(1, after=0)
    trainer(callback, limit_train_batches=1).fit(module, batches(2))
    callback._watch(module)
    callback._update()
    module.zero_grad()
    module.train()
    module.loss(next(iter(batches()))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    callback._remove()


def test_before_its_part_nothing_changes() -> None:
    plain, watched = Uneven(), Uneven()
    trainer().fit(plain, batches(3))
    trainer(ShiftNorms(1, after=1.0)).fit(watched, batches(3))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


class Validating(Uneven):
    """Keeps the losses of its validations."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.losses.append(self.loss(batch).item())


def test_a_compiled_network_validates_with_rounded_scales() -> None:
    plain, compiled = Validating(), Validating()
    compiled.net.compile(backend="eager")
    for module in (plain, compiled):
        options = {"max_epochs": 4, "num_sanity_val_steps": 1}
        trainer(ShiftNorms(1, after=0.5), **options).fit(module, batches(2), batches(1))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)


class SaveAfter(pl.Callback):
    """Saves a checkpoint after some epochs, which a killed run would go on from."""

    def __init__(self, epochs: int, path: str) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_stopped_training_goes_on_with_rounding(epochs: int, tmp_path: Path) -> None:
    whole, again = Uneven(), Uneven()
    path = str(tmp_path / "stopped.ckpt")
    trainer(ShiftNorms(1, after=0.5), SaveAfter(epochs, path), max_epochs=4).fit(whole, batches(2))
    trainer(ShiftNorms(1, after=0.5), max_epochs=4).fit(again, batches(2), ckpt_path=path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], msg=name)


def test_a_network_by_hand() -> None:
    network = make_net()
    nn.init.normal_(network[4].weight)
    with torch.no_grad():
        network[4].weight[0] = 0
    before = copy.deepcopy(network)
    round_norm_scales_(network, 2)
    expected = [nearest_sum(float(s), 2) if s else 0.0 for s in scales(before[4])]
    torch.testing.assert_close(
        scales(network[4]), torch.tensor(expected).double(), rtol=1e-5, atol=0
    )
    assert torch.equal(network[1].weight, before[1].weight)


@pytest.mark.parametrize("options", [{"terms": 0}, {"terms": 2.0}, {"after": 1.5}, {"after": -1}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(AdderizeError, match="expected"):
        ShiftNorms(**options)


def test_nothing_to_round() -> None:
    module = Uneven()
    module.net = nn.Sequential(nn.Conv2d(1, 5, 6), nn.BatchNorm2d(5), nn.Flatten())
    with pytest.raises(MisconfigurationException, match="found no batch norm after an adder"):
        trainer(ShiftNorms()).fit(module, batches(1))


def test_norms_that_cannot_be_rounded() -> None:
    module = Uneven()
    module.net[4] = nn.BatchNorm2d(4, affine=False)
    with pytest.raises(MisconfigurationException, match=r"cannot round net\.4, a norm without"):
        trainer(ShiftNorms()).fit(module, batches(1))


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"limit_train_batches": 0}])
def test_a_training_of_no_steps_changes_nothing(options: dict[str, Any]) -> None:
    module, fresh = Uneven(), Uneven()
    trainer(ShiftNorms(1), **options).fit(module, batches(2))
    for index in ROUNDED:
        assert torch.equal(module.net[index].weight, fresh.net[index].weight)


def test_a_training_without_an_end() -> None:
    with pytest.raises(MisconfigurationException, match="no end"):
        trainer(ShiftNorms(), max_epochs=-1, limit_train_batches=1).fit(Uneven(), batches(1))


def test_scales_that_are_not_finite() -> None:
    network = make_net()
    with torch.no_grad():
        network[4].weight[0] = torch.nan
    with pytest.raises(AdderizeError, match="a scale is nan"):
        round_norm_scales_(network, 2)
