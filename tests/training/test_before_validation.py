"""The statistics that are validated and saved: whose weights, which batches, what stays."""

from __future__ import annotations

import copy
import random
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from adderize import AdaptiveLearningRate, recalibrate
from tests.training.test_callback_logging import ListLogger
from tests.training.tiny_lit import Lit, ManualLit, batches, trainer

PAIRS = [(images, labels) for images, labels in batches(4)]
IMAGES = [images for images, _ in PAIRS]


def recalibrated(net: nn.Module, images: list[Tensor] = IMAGES) -> nn.Module:
    return recalibrate(copy.deepcopy(net), images)


def check_statistics(found: nn.Module, expected: nn.Module) -> None:
    for (name, a), b in zip(found.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


class Sees(pl.Callback):
    """The network as each validation saw it."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not trainer.sanity_checking and args[2] == 0:
            self.networks.append(copy.deepcopy(pl_module.net))


def callback(count: int = 4, **options: Any) -> AdaptiveLearningRate:
    return AdaptiveLearningRate(1.0, recalibrate_before_validation=count, **options)


def fit(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    data: Any = None,
    validation: Any = None,
    **options: Any,
) -> Sees:
    sees = Sees()
    data = batches(4) if data is None else data
    trainer(*callbacks, sees, **options).fit(module, data, validation or batches(1))
    return sees


class SwapsAtStart(WeightAveraging):
    """Averaged weights that come one hook earlier than Lightning's."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pass


AVERAGING: list[Callable[[], pl.Callback]] = [
    lambda: EMAWeightAveraging(decay=0.9),
    lambda: EMAWeightAveraging(decay=0.9, use_buffers=False),
    WeightAveraging,
    SwapsAtStart,
]


@pytest.mark.parametrize("make", AVERAGING)
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_have_statistics_of_their_own(
    make: Callable[[], pl.Callback], first: bool, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)
    order = [callback(), make()] if first else [make(), callback()]
    module = Lit()
    sees = fit(module, *order, saving, max_epochs=2, enable_checkpointing=True)
    assert len(sees.networks) == 2
    for network in sees.networks:
        check_statistics(network, recalibrated(network))
    check_statistics(module.net, sees.networks[-1])
    saved = torch.load(max(tmp_path.glob("*.ckpt")), weights_only=False)["state_dict"]
    for name, tensor in sees.networks[-1].state_dict().items():
        torch.testing.assert_close(saved[f"net.{name}"], tensor, msg=name)


def test_training_goes_on_with_the_weights_that_were_trained() -> None:
    plain, averaged = Lit(), Lit()
    fit(plain, callback(), max_epochs=2)
    optimizers = [plain.trainer.optimizers[0]]
    fit(averaged, callback(), EMAWeightAveraging(decay=0.9), max_epochs=2)
    optimizers.append(averaged.trainer.optimizers[0])
    for a, b in zip(*(optimizer.seen[-1] for optimizer in optimizers), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("first", [True, False])
def test_stochastic_weight_averaging(first: bool) -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    order = [callback(), averaging] if first else [averaging, callback()]
    module = Lit()
    sees = fit(module, *order, max_epochs=3)
    for network in sees.networks:
        check_statistics(network, recalibrated(network))
    means = recalibrated(module.net)[4].running_mean
    torch.testing.assert_close(module.net[4].running_mean, means, rtol=1e-4, atol=1e-5)


def test_frozen_statistics_stay() -> None:
    class HalfFrozen(Lit):
        def train(self, mode: bool = True) -> Lit:
            super().train(mode)
            self.net[1].eval()
            return self

    module = HalfFrozen().train()
    module.net[1].running_mean.fill_(0.5)
    (network,) = fit(module, callback()).networks
    assert torch.equal(network[1].running_mean, torch.full((3,), 0.5))
    assert network[4].num_batches_tracked == 4


Pair = namedtuple("Pair", ["label", "image"])


@dataclass
class Record:
    image: Tensor
    label: Tensor


class Own:
    """Nothing that torch or Lightning knows, but for its ``to``."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.image, self.label = image, label

    def to(self, device: torch.device, **_: Any) -> Own:
        return Own(self.image.to(device), self.label.to(device))


class TakesAnything(Lit):
    def loss(self, batch: Any) -> Tensor:
        if isinstance(batch, dict | list | tuple) and len(batch) and not isinstance(batch, Pair):
            parts = list(batch.values()) if isinstance(batch, dict) else list(batch)
            if isinstance(parts[0], list | Pair | dict):
                return sum((self.loss(part) for part in parts if part is not None), torch.zeros(()))
        if isinstance(batch, dict):
            return super().loss([batch["image"], batch["label"]])
        if isinstance(batch, list | tuple) and not isinstance(batch, Pair):
            return super().loss(batch)
        return super().loss([batch.image, batch.label])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from PAIRS


def loader(make: Callable[[Tensor, Tensor], Any]) -> DataLoader[Any]:
    return DataLoader([make(*pair) for pair in PAIRS], batch_size=None)


ALL, TWO = [0, 1, 2, 3], [0, 1]


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (loader(lambda image, label: {"label": label, "image": image}), ALL),
        (loader(lambda image, label: Pair(label, image)), ALL),
        (loader(Record), ALL),
        (loader(Own), ALL),
        (DataLoader(Stream(), batch_size=None), ALL),
        ([batches(4), batches(4)], [*ALL, *ALL]),
        ({"a": batches(4), "b": batches(2)}, [*ALL, *TWO, *TWO]),
        (CombinedLoader([batches(4), batches(2)], "min_size"), [*TWO, *TWO]),
        (CombinedLoader([batches(4), batches(2)], "max_size"), [*ALL, *TWO]),
        (CombinedLoader({"a": batches(2), "b": batches(4)}, "max_size_cycle"), [*ALL, *TWO, *TWO]),
    ],
)
def test_every_batch_that_training_takes(data: Any, seen: list[int]) -> None:
    (network,) = fit(TakesAnything(), callback(), data=data).networks
    check_statistics(network, recalibrated(network, [IMAGES[i] for i in seen]))


class Prepares(Lit):
    """Images become inputs in every place that training has for it."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 3, batch[1]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        batch[0].mul_(-1)

    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        batch[0].sub_(1)
        return super().training_step([batch[0] / 5, batch[1]], 0)


def test_statistics_are_those_of_the_inputs_that_the_network_sees() -> None:
    module = Prepares()
    (network,) = fit(module, callback()).networks
    check_statistics(network, recalibrated(network, [(-(2 * i + 3) - 1) / 5 for i in IMAGES]))
    assert "on_train_batch_start" not in vars(module.trainer.strategy)


class KeepsRecords(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.losses, self.seen = 0, [], {"images": 0}
        self.accuracy = MulticlassAccuracy(5)
        self.total = torch.zeros(())
        self.register_buffer("queue", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(()))
        self.nested = {"train": defaultdict(list), "sums": (torch.zeros(()), [0])}
        self.counts = np.zeros(5)
        self.torch_generator = torch.Generator().manual_seed(0)
        self.generators = [np.random.default_rng(0), np.random.RandomState(0), random.Random(0)]
        self.dropout = nn.Dropout(0.5)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step([self.dropout(batch[0]) + torch.rand(()), batch[1]], batch_idx)
        self.steps += 1
        self.losses.append(loss.detach())
        self.seen["images"] += len(batch[0])
        self.accuracy.update(self(batch[0]).detach(), batch[1])
        self.total += 1
        self.queue[self.steps % 3] += 1
        self.replaced = self.replaced + 1
        self.late = self.steps
        self.nested["train"]["draws"] += [float(r.random()) for r in self.generators]
        self.nested["sums"][0].add_(torch.rand((), generator=self.torch_generator))
        self.nested["sums"][1].append(self.steps)
        self.counts[batch[1]] += 1
        self.log("train_loss", loss, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy}, on_epoch=True)
        self.logger.experiment.add_scalar("x", 1)
        return loss


class HasExperiment(ListLogger):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.metrics: list[dict[str, float]] = []

    @property
    def experiment(self) -> HasExperiment:
        return self

    def add_scalar(self, *args: Any) -> None:
        self.calls += 1

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append(metrics)


def test_the_step_that_is_run_again_leaves_no_trace() -> None:
    plain, again = KeepsRecords(), KeepsRecords()
    loggers = [HasExperiment(), HasExperiment()]
    options = {"max_epochs": 2, "log_every_n_steps": 1, "val_check_interval": 2}
    for module, logger, count in zip((plain, again), loggers, (0, 2), strict=True):
        torch.manual_seed(0)
        fit(module, callback(count), logger=logger, **options)
    assert plain.steps == again.steps == plain.late == again.late == 8
    assert plain.seen == again.seen == {"images": 32}
    assert plain.nested == again.nested and len(again.nested["sums"][1]) == 1 + 8
    for name in ("losses", "total", "queue", "replaced", "counts"):
        torch.testing.assert_close(getattr(plain, name), getattr(again, name), rtol=0, atol=0)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert loggers[0].calls == loggers[1].calls == 8
    kinds = ("train_loss", "accuracy", "grad_norm", "adaptive_lr")
    first, second = (
        [{k: v for k, v in row.items() if k.startswith(kinds)} for row in logger.metrics]
        for logger in loggers
    )
    assert first == second and any("accuracy_epoch" in row for row in first)
    assert not {"log", "log_dict", "print"} & vars(again).keys()


class HasMomentumEncoder(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(self.net[0]).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.encoder.weight.data = 0.9 * self.encoder.weight.data + 0.1 * self.net[0].weight.data
        with torch.no_grad():
            self.encoder.bias.lerp_(self.net[0].bias, 0.1)
        return super().training_step(batch, batch_idx)


def test_a_step_that_changes_parameters_itself_is_refused_at_the_first_batch() -> None:
    changed = r"changes parameters itself.*encoder.weight, encoder.bias\. Change them in"
    with pytest.raises(MisconfigurationException, match=changed):
        fit(HasMomentumEncoder(), callback(2))


class PenalisesGradients(Lit):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images = batch[0].requires_grad_()
        loss = self.loss([images, batch[1]])
        (slope,) = torch.autograd.grad(loss, images, retain_graph=True)
        return loss + slope.square().sum().detach()


class ManualDicts(ManualLit):
    def loss(self, batch: Any) -> Tensor:
        return super().loss([batch["image"], batch["label"]])


def test_what_cannot_be_run_again_fails_in_the_first_batch() -> None:
    module = PenalisesGradients()
    words = r"PenalisesGradients.training_step.*without gradients.*Pass recalibration_forward"
    with pytest.raises(MisconfigurationException, match=words):
        fit(module, callback())
    assert module.trainer.fit_loop.epoch_loop.batch_idx == 0


def test_manual_optimisation_with_dicts_fails_before_the_first_step() -> None:
    module = ManualDicts()
    before = copy.deepcopy(module.state_dict())
    words = r"cannot be called with a dict of \['image', 'label'\].*recalibration_forward"
    data = loader(lambda image, label: {"image": image, "label": label})
    with pytest.raises(MisconfigurationException, match=words):
        fit(module, callback(), data=data, validation=data)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_manual_optimisation_takes_the_input_of_a_pair() -> None:
    (network,) = fit(ManualLit(), callback()).networks
    check_statistics(network, recalibrated(network))


@pytest.mark.parametrize("kind", [ManualDicts, PenalisesGradients])
def test_a_forward_of_one_s_own(kind: type[Lit]) -> None:
    def forward(module: Any, batch: Any) -> Any:
        return module.net(batch["image"] if isinstance(batch, dict) else batch[0])

    data = batches(4)
    if kind is ManualDicts:
        data = loader(lambda image, label: {"image": image, "label": label})
    options = {"data": data, "validation": data, "limit_val_batches": 1}
    (network,) = fit(kind(), callback(recalibration_forward=forward), **options).networks
    check_statistics(network, recalibrated(network))


def test_a_step_that_fetches_its_batches() -> None:
    class Fetches(Lit):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(MisconfigurationException, match=r"Fetches.training_step takes data"):
        fit(Fetches(), callback())


def test_mixed_precision() -> None:
    (network,) = fit(Lit(), callback(), precision="bf16-mixed").networks
    with torch.autocast("cpu", torch.bfloat16):
        check_statistics(network, recalibrated(network))
