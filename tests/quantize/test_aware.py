"""Quantization-aware training: the forward is that of the integers, the gradients go through."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adderize import (
    AdaptiveLearningRate,
    AdderConv2d,
    AdderizeError,
    count,
    load_model,
    save_model,
    scale_adder_gradients_,
)
from adderize.layers import AdderLinear
from adderize.quantize import prepare_qat, quantize, quantize_report
from adderize.quantize.fake_layers import FakeQuantize
from tests import oracle
from tests.quantize.networks import Branches, Residual, Untraceable, trained

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
NEW = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(2))
BITS = [{}, {"bits": 4, "method": "mse"}, {"filter_bits": 4}, {"bits": 6, "filter_bits": 2}]


def train(model: nn.Module, steps: int = 4, lr: float = 0.05) -> float:
    """Some steps on fixed labels; the last loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    labels = torch.arange(len(X)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), labels)
        loss.backward()
        scale_adder_gradients_(model)
        optimizer.step()
    return float(loss.detach())


def same_but_for_ties(model: nn.Module, quantized: nn.Module) -> bool:
    """Whether most images have the same logits, and the others nearly so, relative to their spread.

    A value in the middle between two bytes may become either one, by the rounding of float32.
    """
    with torch.no_grad():
        expected = model.eval()(NEW)
        images = (quantized(NEW) - expected).abs().amax(1) / expected.std()
    return bool(images.median() < 1e-3 and images.max() < 0.1)


@pytest.mark.parametrize("network", [Residual, Branches, Untraceable])
@pytest.mark.parametrize("options", BITS, ids=str)
def test_it_computes_what_the_integers_do_before_and_after_training(
    network: type[nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = trained(network())
    prepared = prepare_qat(model, [X], **options)
    directly = quantize(model, [X], **options)
    assert same_but_for_ties(prepared, directly)
    assert same_but_for_ties(prepared, quantize(prepared, [X]))
    before = prepared.eval()(NEW)
    train(prepared.train())
    assert not torch.allclose(prepared.eval()(NEW), before, atol=0.05)
    trained_bytes = quantize(prepared, [NEW])
    assert same_but_for_ties(prepared, trained_bytes)
    errors = [row.error for row in quantize_report(trained_bytes).layers]
    assert max(errors) < 0.03


def test_the_scales_are_those_of_quantize_and_stay() -> None:
    model = trained(Residual())
    rows = quantize_report(quantize(model, [X], bits=5, method="percentile")).layers
    prepared = prepare_qat(model, [X], bits=5, method="percentile")
    train(prepared)
    after = quantize_report(quantize(prepared, [100 * X]))
    for found, expected in zip(after.layers, rows, strict=True):
        assert found.layer == expected.layer
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    assert (after.bits, after.method) == (5, "percentile")


def test_gradients_are_those_of_the_rounded_values_passed_straight_through() -> None:
    layer = AdderConv2d(3, 4, 3, stride=2, padding=1, bias=True)
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.weight, std=2.0)
    prepared = prepare_qat(layer, [X.clamp(-1, 1)], bits=4)
    grid = prepared.grid.qparams
    x = NEW.clone().requires_grad_()
    output = prepared(x)
    grad = torch.randn_like(output)
    output.backward(grad)

    rounded = grid.to_float(grid.to_bytes(x.detach())).double()
    weight = layer.weight.detach().double()
    clamped = weight.clamp(grid.low, grid.high)
    # A filter beyond the range draws the input as strongly as it does in floats.
    steps = grid.to_float(grid.to_bytes(clamped.float())).double()
    filters = torch.where(weight == clamped, steps, weight)
    expected = oracle.adder_conv2d(rounded, filters, grad, stride=(2, 2), padding=(1, 1))
    offset = layer.bias.detach().double().view(-1, 1, 1)
    inside = (x.detach() >= grid.low) & (x.detach() <= grid.high)
    assert 0.2 < inside.double().mean() < 0.9
    assert oracle.relative_error(output.detach(), expected.output + offset) < 1e-5
    assert oracle.relative_error(prepared.weight.grad, expected.weight_gradient) < 1e-5
    assert oracle.relative_error(x.grad, expected.input_gradient * inside) < 1e-5
    assert oracle.relative_error(prepared.bias.grad, grad.sum((0, 2, 3)).double()) < 1e-5


def test_gradients_of_deep_networks_are_as_large_as_in_floats() -> None:
    torch.manual_seed(0)
    layers = [
        part
        for _ in range(12)
        for part in (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    ]
    stem, head = nn.Conv2d(3, 8, 3, padding=1), [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = trained(nn.Sequential(stem, *layers, *head)).train()
    norms = []
    for network in (model, prepare_qat(model, [X]), prepare_qat(model, [X], filter_bits=4)):
        F.cross_entropy(network(X), torch.arange(len(X)) % 8).backward()
        gradient = network.get_submodule("0").weight.grad
        assert gradient is not None
        norms.append(float(gradient.norm()))
    assert max(norms) < 4 * min(norms)


def test_training_wins_back_what_few_bits_lose() -> None:
    torch.manual_seed(0)
    labels = torch.arange(len(X)) % 3
    model = trained(Residual()).train()
    train(model, 40)
    model.eval()

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(network(X), labels))

    rounded = loss(quantize(model, [X], bits=3))
    prepared = prepare_qat(model, [X], bits=3)
    train(prepared, 30, lr=0.02)
    assert loss(quantize(prepared, [X])) < 0.7 * rounded


def test_a_layer_called_on_inputs_of_two_scales_has_two_forms_of_one_filter() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = AdderConv2d(3, 3, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.bn(self.layer(x)))
            return self.layer(x).mean((2, 3))

    model = Twice().eval()
    prepared = prepare_qat(model, [X])
    assert len([*prepared.parameters()]) == len([*model.parameters()])
    train(prepared)
    assert same_but_for_ties(prepared, quantize(prepared, [X]))


def test_linear_layers_take_part() -> None:
    model = nn.Sequential(nn.Flatten(), AdderLinear(432, 8), nn.BatchNorm1d(8)).eval()
    prepared = prepare_qat(model, [X], filter_bits=3)
    train(prepared)
    quantized = quantize(prepared, [X])
    assert same_but_for_ties(prepared, quantized)
    assert len(quantized.get_submodule("1").weight.unique()) <= 8


class WithDropout(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.drop(self.block(self.pool(self.stem(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_dropout_and_norms_of_kept_convolutions_train() -> None:
    model = trained(WithDropout())
    prepared = prepare_qat(model, [X])
    assert not torch.equal(prepared(NEW), prepared(NEW))
    mean = prepared.stem.get_submodule("1").running_mean.clone()
    train(prepared)
    assert not torch.equal(prepared.stem.get_submodule("1").running_mean, mean)
    assert same_but_for_ties(prepared, quantize(prepared, [X]))


class DropoutBetween(nn.Module):
    """Dropout on one of two ways from a tensor, before a pooling of bytes, and inside a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = AdderConv2d(8, 8, 3, padding=1), AdderConv2d(16, 8, 1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.drop, self.last = nn.Dropout(0.5, inplace=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_one(self.one(self.first(x))))
        y = self.drop(torch.cat([y, self.drop(y.clone())], 1))
        z = self.norm_two(self.two(F.max_pool2d(y, 2)))
        z = F.relu(self.drop(z) + F.max_pool2d(y, 2)[:, 8:])
        return self.last((self.norm_one(self.one(self.drop(z))) + z).mean((2, 3)))


@pytest.mark.parametrize("options", BITS, ids=str)
def test_dropout_changes_no_scales(options: dict[str, Any]) -> None:
    model = trained(DropoutBetween())
    prepared = prepare_qat(model, [X], **options)
    assert same_but_for_ties(prepared, quantize(model, [X], **options))
    train(prepared)
    assert same_but_for_ties(prepared, quantize(prepared, [X]))


def test_it_is_counted_and_exported_as_other_networks() -> None:
    model = trained(Residual())
    prepared = prepare_qat(model, [X]).eval()
    with torch.no_grad():
        program = torch.export.export(prepared, (NEW,)).module()
        assert torch.allclose(program(NEW), prepared(NEW), atol=1e-5)
    before, after = count(model, (3, 12, 12)), count(prepared, (3, 12, 12))
    adders = [row.after.additions for row in before.layers if row.kind == "adder"]
    rounding = [row.after.additions for row in after.layers if row.kind == "adder"]
    assert len(rounding) == len(adders) > 0
    assert all(found >= plain for found, plain in zip(rounding, adders, strict=True))


def test_dropout_stays_where_it_was() -> None:
    model = trained(DropoutBetween())
    prepared = prepare_qat(model, [X])
    for network in (model, prepared):
        network.train().drop.p = 1.0  # type: ignore[union-attr]
        for norm in (network.norm_one, network.norm_two):
            norm.eval()  # type: ignore[operator]
    dropped = model(NEW)
    difference = (prepared(NEW) - dropped).detach().abs().max()
    assert difference < 0.05 * dropped.detach().abs().max()


def test_the_float_model_stays_as_it_was() -> None:
    model = trained(Residual()).train()
    before = copy.deepcopy(model.state_dict())
    train(prepare_qat(model, [X]))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_state_dicts_have_the_float_models_names_and_the_scales(tmp_path: Any) -> None:
    model = trained(Residual())
    prepared = prepare_qat(model, [X], bits=4)
    train(prepared)
    assert model.state_dict().keys() <= prepared.state_dict().keys()
    torch.save(prepared.state_dict(), tmp_path / "state.pt")
    other = prepare_qat(model, [3 * X], bits=4)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.eval()(NEW), prepared.eval()(NEW))
    copied = copy.deepcopy(prepared)
    assert torch.equal(quantize(copied, [X])(NEW), quantize(prepared, [X])(NEW))
    assert torch.equal(quantize(other, [X])(NEW), quantize(prepared, [X])(NEW))


@pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="torch 2.6 pickles no graph with annotations in words"
)
@pytest.mark.parametrize("network", [Residual, Untraceable])
def test_copies_of_every_kind_become_the_same_bytes(network: type[nn.Module]) -> None:
    prepared = prepare_qat(trained(network()), [X], bits=4)
    expected = quantize(prepared, [X])(NEW)
    pickled = pickle.loads(pickle.dumps(prepared))
    for twin in (
        pickled,
        copy.deepcopy(pickled),
        pickle.loads(pickle.dumps(copy.deepcopy(prepared))),
        copy.copy(prepared),
    ):
        assert torch.equal(quantize(twin, [X])(NEW), expected)


@pytest.mark.parametrize("network", [Residual, Branches, Untraceable, WithDropout, DropoutBetween])
def test_the_quantized_network_saves_as_others_do(tmp_path: Any, network: type[nn.Module]) -> None:
    prepared = prepare_qat(trained(network()), [X], filter_bits=4)
    train(prepared)
    quantized = quantize(prepared, [X])
    save_model(quantized, tmp_path)
    assert torch.equal(load_model(network(), tmp_path)(NEW), quantized(NEW))


class Module(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_it_trains_under_lightning_with_the_adaptive_rate(tmp_path: Any) -> None:
    prepared = prepare_qat(trained(Residual()), [X])
    before = prepared.block.conv1.weight.detach().clone()
    loader = DataLoader(TensorDataset(X, torch.arange(16) % 4), batch_size=8)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[AdaptiveLearningRate(log=False)],
    )  # fmt: skip
    trainer.fit(Module(prepared), loader)
    change = prepared.block.conv1.weight.detach() - before
    # Two steps, each of the length that the rule gives: lr * eta.
    assert 0.5 * 0.05 * 0.2 < float(change.square().mean().sqrt()) <= 2.01 * 0.05 * 0.2
    assert same_but_for_ties(prepared, quantize(prepared, [X]))


def test_what_is_refused(tmp_path: Any) -> None:
    model = trained(Residual())
    prepared = prepare_qat(model, [X], bits=4)
    with pytest.raises(AdderizeError, match="prepare the float model, once"):
        prepare_qat(prepared, [X])
    with pytest.raises(AdderizeError, match="leave method, bits and filter_bits out"):
        quantize(prepared, [X], bits=6)
    with pytest.raises(AdderizeError, match="the whole network"):
        quantize(prepared.block, [X])
    with pytest.raises(AdderizeError, match="prepare_qat"):
        save_model(prepared, tmp_path)
    with pytest.raises(AdderizeError, match="holds no batches"):
        quantize(prepared, [])
    for wrong in (0, 9, True, 2.0):
        with pytest.raises(AdderizeError, match="filter_bits is"):
            quantize(model, [X], filter_bits=wrong)
    with pytest.raises(AdderizeError, match="from 1 to bits, 4"):
        prepare_qat(model, [X], bits=4, filter_bits=5)
    with torch.no_grad():
        prepared.block.conv1.weight[0] = float("nan")
    with pytest.raises(AdderizeError, match="holds NaN"):
        quantize(prepared, [X])


def test_values_and_gradients_of_a_fake_quantization() -> None:
    prepared = prepare_qat(trained(Residual()), [X], bits=4)
    grids = [m for m in prepared.modules() if isinstance(m, FakeQuantize)]
    x = torch.linspace(-9, 9, 1001, requires_grad=True)
    for grid in grids:
        (gradient,) = torch.autograd.grad(grid(x).sum(), x)
        inside = (x >= grid.qparams.low) & (x <= grid.qparams.high)
        assert torch.equal(gradient, inside.float())
        assert len(grid(x).unique()) <= 2**grid.qparams.bits
