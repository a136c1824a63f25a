"""Matching and reconstruction of whole networks, against measurements of their own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adderize import adderize
from adderize.layers import AdderConv2d, AdderLinear
from adderize.transfer import TransferReport, match, reconstruct
from adderize.transfer.features import Bench
from tests.transfer.networks import KINDS, SIDE, Block, Network, images, plain, teacher

Adder = AdderConv2d | AdderLinear


def _converted(network: nn.Module, **options: Any) -> nn.Module:
    options = {"linear": True, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adderize(network, inplace=False, **options)


def _adders(model: nn.Module) -> dict[str, Adder]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Adder)}


def _first_call(network: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer, the output before the norm that it may own."""
    layer = network.get_submodule(name)
    seen: list[tuple[Tensor, Tensor]] = []
    norm = getattr(layer, "norm", None)
    if norm is None:
        handle = layer.register_forward_hook(
            lambda _, inputs, output: seen.append((inputs[0].clone(), output.clone()))
        )
    else:
        inputs: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
        norm.register_forward_pre_hook(lambda _, args: seen.append((inputs[0], args[0].clone())))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen[0]


def _correlation(outputs: Tensor, targets: Tensor, linear: bool) -> float:
    channel = -1 if linear else 1
    a, b = (t.movedim(channel, 0).flatten(1).double().numpy() for t in (outputs, targets))
    return float(np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(a, b, strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_come_closer_to_their_teacher(kind: str) -> None:
    original = teacher(KINDS[kind])
    model = _converted(original)
    x = images()
    report = match(model, original, [x], progress=False)
    assert {row.name for row in report.layers} == _adders(model).keys()
    for row in report.layers:
        assert row.before <= row.after <= 1
    again = copy.deepcopy(model)
    fitted = reconstruct(again, original, [x], steps=60, batch_size=16, progress=False)
    assert fitted.correlation > report.correlation
    for row in fitted.layers:
        assert row.after >= row.before
    for layer in _adders(again).values():
        assert layer.gradient == "sign_input"
        assert layer.weight.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "shared"])
def test_the_report_says_what_an_independent_measurement_says(kind: str) -> None:
    original = teacher(KINDS[kind])
    model = _converted(original)
    x = images(40)
    report = reconstruct(model, original, [x], steps=10, batch_size=16, progress=False)
    model.eval()
    for row in report.layers:
        _, output = _first_call(model, row.name, x)
        own_input, _ = _first_call(model, row.name, x)
        _, target = _first_call(original, row.name, x)
        linear = row.kind == "AdderLinear"
        assert row.after == pytest.approx(_correlation(output, target, linear), abs=1e-4)
        with torch.no_grad():
            convolved = original.get_submodule(row.name)(own_input)
        assert row.limit == pytest.approx(_correlation(convolved, target, linear), abs=1e-4)


@pytest.mark.parametrize("method", [match, reconstruct])
def test_norms_fit_the_new_filters(method: Callable[..., TransferReport]) -> None:
    original = teacher(KINDS["residual"])
    model = _converted(original)
    x = images()
    method(model, original, [x], progress=False, **({"steps": 5} if method is reconstruct else {}))
    block = model.blocks[0]  # type: ignore[union-attr,index]
    for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut", "bn3")):
        _, output = _first_call(model, f"blocks.0.{conv}", x)
        found = block.get_submodule(norm)
        torch.testing.assert_close(found.running_mean, output.mean((0, 2, 3)), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.running_var, output.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
        assert found.weight.equal(original.get_submodule(f"blocks.0.{norm}").weight)
        assert found.momentum == 0.1


@pytest.mark.parametrize("kind", ["inserted norms", "linear"])
def test_inserted_norms_give_the_teachers_means_and_deviations(kind: str) -> None:
    original = teacher(KINDS[kind])
    model = _converted(original)
    x = images()
    match(model, original, [x], progress=False)
    inserted = {name: layer for name, layer in _adders(model).items() if layer.norm is not None}
    assert inserted
    for name, layer in inserted.items():
        seen: list[Tensor] = []
        assert layer.norm is not None
        handle = layer.register_forward_hook(lambda _, args, output: seen.append(output))  # noqa: B023
        with torch.no_grad():
            model.eval()(x)
        handle.remove()
        _, target = _first_call(original, name, x)
        channel = -1 if isinstance(layer, AdderLinear) else 1
        for statistic in (torch.mean, torch.std):
            found, wanted = (
                statistic(t.movedim(channel, 0).flatten(1), 1) for t in (seen[0], target)
            )
            torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)


def test_later_calls_of_a_shared_layer_count() -> None:
    original = teacher(KINDS["shared"])
    model = _converted(original)
    report = reconstruct(model, original, [images()], steps=40, progress=False)
    (row,) = report.layers
    assert row.after > row.before
    norm = model.blocks[0].norm  # type: ignore[union-attr,index]
    assert int(norm.num_batches_tracked) == 3


def test_everything_else_stays_as_it_was() -> None:
    original = teacher(plain)
    model = _converted(original).train()
    model.stem.eval()  # type: ignore[union-attr]
    state = copy.deepcopy(original.state_dict())
    stem = copy.deepcopy(model.stem.state_dict())  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    reconstruct(model, original, [images()], steps=2, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert not any(module.training for module in original.modules())
    assert all(tensor.equal(state[key]) for key, tensor in original.state_dict().items())
    assert all(t.equal(stem[key]) for key, t in model.stem.state_dict().items())  # type: ignore[union-attr]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for network in (model, original):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_hooks_are_gone_after_an_error() -> None:
    original = teacher(plain)
    model = _converted(original)
    wrong = torch.randn(4, 5, 10, 10)
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        match(model, original, [images(), wrong], progress=False)
    for network in (model, original):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(("gradient", "expected"), [(None, "full"), ("sign", "sign")])
def test_a_gradient_of_ones_own_choice(gradient: str | None, expected: str) -> None:
    original = teacher(plain)
    model = _converted(original)
    match(model, original, [images()], gradient=gradient, progress=False)
    assert {layer.gradient for layer in _adders(model).values()} == {expected}


@pytest.mark.parametrize(
    "batches",
    [
        images(),
        list(images().split(7)),
        [(part, torch.zeros(len(part))) for part in images().split(5)],
        DataLoader(TensorDataset(images(), torch.zeros(48)), batch_size=11),
    ],
    ids=["tensor", "tensors", "pairs", "loader"],
)
def test_batches_come_in_any_usual_form(batches: Any) -> None:
    original = teacher(plain)
    expected, model = _converted(original), _converted(original)
    match(expected, original, [images()], progress=False)
    report = match(model, original, batches, progress=False)
    assert report.images == 48
    for name, layer in _adders(model).items():
        assert layer.weight.equal(_adders(expected)[name].weight)


def test_no_more_images_than_asked_for() -> None:
    original = teacher(plain)
    few, expected = _converted(original), _converted(original)
    taken: list[int] = []

    def batches() -> Any:
        for part in images().split(10):
            taken.append(len(part))
            yield part

    assert match(few, original, batches(), images=25, progress=False).images == 25
    assert len(taken) == 3
    match(expected, original, images()[:25], progress=False)
    for name, layer in _adders(few).items():
        assert layer.weight.equal(_adders(expected)[name].weight)


def test_a_seed_makes_it_repeatable() -> None:
    original = teacher(plain)
    weights = []
    for seed in (1, 1, 2):
        model = _converted(original)
        reconstruct(model, original, [images()], steps=5, batch_size=8, seed=seed, progress=False)
        weights.append(torch.cat([layer.weight.flatten() for layer in _adders(model).values()]))
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_little_memory_works_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    features = Bench.features

    def watched(bench: Bench, pair: Any, part: Any) -> Any:
        found = features(bench, pair, part)
        sizes.append(sum(f.bytes for f in found))
        return found

    monkeypatch.setattr(Bench, "features", watched)
    original = teacher(plain)
    x = images(1024)
    memory = 2**22
    report = reconstruct(_converted(original), original, x, steps=40, memory=memory, progress=False)
    # Joining the batches of a part holds them twice.
    assert memory / 8 < max(sizes) <= memory / 2
    assert len(sizes) >= 4 * len(report.layers)
    assert all(row.after > row.before for row in report.layers)


@pytest.mark.parametrize("memory", [2**31, 2**19])
def test_images_that_come_in_an_order_count_alike(memory: int) -> None:
    """As those of class folders do: no part of them stands for all, no batch has their variance."""
    original = teacher(KINDS["inserted norms"])
    model = _converted(original)
    x = torch.cat([images(512) / 10 - 1, images(512) + 1])
    match(model, original, x, memory=memory, progress=False)
    for name, layer in _adders(model).items():
        if layer.norm is None:
            continue
        _, target = _first_call(original, name, x)
        _, own = _first_call(model.eval(), name, x)
        assert isinstance(layer.norm, nn.BatchNorm2d)
        torch.testing.assert_close(layer.norm.weight, target.std((0, 2, 3)), rtol=0.1, atol=0.01)
        torch.testing.assert_close(layer.norm.running_var, own.var((0, 2, 3)), rtol=0.1, atol=0.01)


class OnOwnInput(Network):
    """Normalises its images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(2))


def test_networks_that_change_their_images_in_place() -> None:
    def build() -> nn.Module:
        return OnOwnInput(Block(nn.Conv2d(8, 10, 3), 10), channels=10)

    original = teacher(build)
    x, unchanged = images(), images()
    report = match(_converted(original), original, x, progress=False)
    plainly = Network(Block(nn.Conv2d(8, 10, 3), 10), channels=10).eval()
    plainly.load_state_dict(original.state_dict())
    expected = match(_converted(plainly), plainly, (unchanged - 0.5) * 2, progress=False)
    assert x.equal(unchanged)
    assert report.layers[0].after == pytest.approx(expected.layers[0].after, abs=1e-5)


class BySize(Network):
    """A block for large images alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.blocks[0](x) if x.shape[-1] > 6 else x).mean((2, 3)))


@pytest.mark.parametrize("memory", [2**31, 1])
def test_a_layer_that_some_batches_do_not_reach(memory: int) -> None:
    original = teacher(lambda: BySize(Block(nn.Conv2d(8, 8, 3, padding=1), 8), channels=8))
    x = images()
    batches = [x[:24], x[..., :6], x[24:]]
    report = reconstruct(
        _converted(original), original, batches, steps=4, memory=memory, progress=False
    )
    (row,) = report.layers
    assert row.after > row.before


class ByName(nn.Module):
    """Gives its layers their inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def forward(self, x: Tensor) -> Tensor:
        x = self.network.stem(x)
        for block in self.network.blocks:
            x = F.relu(block.norm(input=block.conv(input=x)))
        return self.network.head(input=x.mean((2, 3)))


def test_layers_that_get_their_input_by_name() -> None:
    by_name, by_place = teacher(ByName), teacher(plain)
    by_name.network.load_state_dict(by_place.state_dict())
    reports = []
    for original in (by_name, by_place):
        model = adderize(original, inplace=False)
        reports.append([row.after for row in match(model, original, images()).layers])
    assert reports[0] == reports[1]


class Detector(nn.Module):
    """Takes a list of images of unlike sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def forward(self, several: list[Tensor]) -> list[Tensor]:
        return [self.network(image[None]) for image in several]


@pytest.mark.parametrize(("limit", "taken"), [(100, 12), (12, 12), (8, 8), (5, 5), (1, 1)])
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_images(limit: int, taken: int, kind: type) -> None:
    original = Detector()
    original.network.load_state_dict(teacher(plain).state_dict())
    seen: list[tuple[int, ...]] = []
    original.register_forward_pre_hook(lambda _, args: seen.extend(x.shape for x in args[0]))
    batches = [(kind(torch.randn(3, SIDE + n, SIDE) for n in range(4)), [{}] * 4) for _ in range(3)]
    report = match(adderize(original, inplace=False), original.eval(), batches, images=limit)
    assert report.images == taken
    assert {shape[0] for shape in seen} == {3}


def test_an_odd_first_image_among_others_of_other_sizes_does_no_harm() -> None:
    original = teacher(plain)
    ordinary = list(images(64).split(16))
    odd = 0.05 * torch.randn(1, 3, SIDE - 2, SIDE)
    gains = [
        [row.after - row.before for row in match(model, original, batches).layers]
        for batches in (ordinary, [odd, *ordinary])
        for model in [adderize(original, inplace=False)]
    ]
    # Half of each correlation is that of the odd image.
    assert all(gain > 0.4 * usual > 0 for usual, gain in zip(*gains, strict=True))


def test_in_inference_mode() -> None:
    original = teacher(plain)
    expected, model = adderize(original, inplace=False), adderize(original, inplace=False)
    reconstruct(expected, original, images(), steps=3)
    with torch.inference_mode():
        reconstruct(model, original, images(), steps=3)
    state = expected.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.train()(images()).sum().backward()
