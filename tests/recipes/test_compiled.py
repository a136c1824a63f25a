"""Trainings under torch.compile and with the data on the device: the same, and nothing waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adderize import adderize, load_model, scale_adder_gradients_
from adderize.data import Dataset, ImageSet, load_cifar
from adderize.data.augmentation import CROP_AND_FLIP
from adderize.models.by_name import build
from adderize.models.cifar_resnet import CifarResNet
from adderize.training.stepping import ScaleAtEveryStep
from recipes import cifar
from recipes.batches import InMemoryImages
from recipes.compiled import OwnGradients
from recipes.image_classifier import ImageClassifier, MeanLoss, TopK
from recipes.run import trainer
from recipes.run.monitors import StopOnBrokenLoss
from tests.recipes.networks import BATCH_NORMS, arguments
from tests.recipes.runs import killed
from tests.recipes.test_cifar import TIMES


@pytest.fixture
def _without_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Graphs are traced and differentiated, but run by torch's own kernels."""
    asked: list[dict[str, Any]] = []

    def compile(self: nn.Module, **options: Any) -> None:
        asked.append(options)
        self._compiled_call_impl = torch.compile(
            self._call_impl, backend="aot_eager", fullgraph=True, dynamic=options.get("dynamic")
        )

    monkeypatch.setattr(nn.Module, "compile", compile)
    torch._dynamo.reset()
    yield asked
    torch._dynamo.reset()


def _history(metrics: dict[str, Any]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images/s"} for row in metrics["history"]]


def _filters(folder: Path) -> dict[str, Tensor]:
    return load_model(build(BATCH_NORMS), folder / "model").state_dict()


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("default", ()),
        ("reduce-overhead", ("--accumulate", "3", "--ema", "0.8", "--clip", "1")),
        ("reduce-overhead", ("--precision", "bf16-mixed", "--label-smoothing", "0.1")),
    ],
)
def test_compiled_trainings_give_what_others_give(
    mode: str, more: tuple[str, ...], tmp_path: Path, _without_inductor: list[dict[str, Any]]
) -> None:
    expected = cifar.train(arguments(tmp_path / "plain", *more))
    found = cifar.train(arguments(tmp_path / "compiled", "--compile", mode, *more))
    assert [options["mode"] for options in _without_inductor] == [mode]
    tolerance = 0.05 if "--precision" in more else 2e-3
    for row, other in zip(_history(found), _history(expected), strict=True):
        for name in ("train/loss", "val/loss"):
            assert row[name] == pytest.approx(other[name], rel=tolerance)
    theirs = _filters(tmp_path / "plain")
    for name, tensor in _filters(tmp_path / "compiled").items():
        if tensor.is_floating_point() and not more:
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)


def test_a_compiled_training_on_the_device_resumes_to_the_same_result(
    tmp_path: Path, _without_inductor: list[dict[str, Any]]
) -> None:
    more = ("--epochs", "3", "--compile", "reduce-overhead", "--data-on-device")
    whole = cifar.train(arguments(tmp_path / "whole", *more))
    with killed(2):
        cifar.train(arguments(tmp_path / "parts", *more))
    parts = cifar.train(["--resume", str(tmp_path / "parts")])
    assert _history(parts) == _history(whole)
    expected, found = _filters(tmp_path / "whole"), _filters(tmp_path / "parts")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("more", [(), ("--accumulate", "3", "--ema", "0.8", "--no-augment")])
def test_data_on_the_device_change_no_bit(more: tuple[str, ...], tmp_path: Path) -> None:
    expected = cifar.train(arguments(tmp_path / "host", *more))
    found = cifar.train(arguments(tmp_path / "device", "--data-on-device", *more))
    for metrics in (expected, found):
        for key in (*TIMES, "history"):
            metrics[key] = _history(metrics) if key == "history" else None
    assert found == expected
    theirs, filters = (_filters(tmp_path / name) for name in ("host", "device"))
    assert all(torch.equal(theirs[key], filters[key]) for key in theirs)


@pytest.mark.parametrize("given", [[], ["--compile"], ["--compile", "max-autotune"]])
def test_the_mode_without_a_name_is_the_default_one(given: list[str]) -> None:
    mode = cifar._parser().parse_args(given).compile
    assert mode == (None if not given else given[-1] if given[1:] else "default")


def test_an_unknown_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cifar._parser().parse_args(["--compile", "fast"])
    assert "argument --compile: invalid choice: 'fast'" in capsys.readouterr().err


class _InGraphMemory(torch.autograd.Function):
    """The gradient of each backward pass lies in the same memory, as in a replayed CUDA graph."""

    memory = torch.zeros(3)

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: float) -> Tensor:
        ctx.value = value
        return weight * value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _InGraphMemory.memory.copy_(grads[0] * ctx.value).view_as(grads[0]), None


def _accumulated(own: Callable[[], None], weight: nn.Parameter) -> list[float]:
    for value in (1.0, 10.0, 100.0):
        _InGraphMemory.apply(weight, value).sum().backward()
        own()
    assert weight.grad is not None
    return weight.grad.tolist()


@pytest.mark.parametrize("dropped", [True, False])
def test_gradients_in_the_memory_of_graphs_are_accumulated(dropped: bool) -> None:
    network = nn.ParameterList([nn.Parameter(torch.ones(3))])
    gradients = OwnGradients(network)
    for _ in range(2):
        assert _accumulated(gradients.own, network[0]) == [111.0] * 3
        assert network[0].grad is not None
        assert network[0].grad.data_ptr() != _InGraphMemory.memory.data_ptr()
        torch.optim.SGD(network, lr=0.1).zero_grad(set_to_none=dropped)


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def test_gradients_are_copied_by_one_operator() -> None:
    network = nn.ParameterList([nn.Parameter(torch.randn(n)) for n in range(1, 30)])
    gradients, optimizer = OwnGradients(network), torch.optim.SGD(network, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.cat([weight.square() for weight in network]).sum().backward()
        found = [weight.grad for weight in network]
        with _Operators() as operators:
            gradients.own()
        assert operators.names == ["_foreach_mul.Scalar"]
        for weight, gradient in zip(network, found, strict=True):
            assert torch.equal(weight.grad, gradient) and weight.grad is not gradient


def test_the_adaptive_rate_acts_on_own_gradients_at_every_step() -> None:
    """Also where an operator changes gradients without a trace in their version."""
    network = adderize(build(BATCH_NORMS))
    gradients, optimizer = OwnGradients(network), torch.optim.SGD(network.parameters(), lr=0.0)
    seen: list[list[str]] = []
    rate = ScaleAtEveryStep(network, 0.2, lambda found: seen.append(found.names))
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 32, 32)).square().sum().backward()
        with _Operators():
            gradients.own()
        optimizer.step()
    rate.remove()
    assert seen == [["3"]] * 3


def test_an_epoch_s_metrics_are_named_to_lightning_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of `log` costs the host as much as launching tens of kernels."""
    named: list[str] = []
    log = LightningModule.log

    def counted(self: Any, name: str, *args: Any, **options: Any) -> None:
        named.append(name)
        log(self, name, *args, **options)

    monkeypatch.setattr(LightningModule, "log", counted)
    cifar.train(arguments(tmp_path / "run", "--batch-size", "16"))
    assert [named.count(f"train/{name}") for name in ("loss", "top1", "top5")] == [2, 2, 2]
    assert named.count("images/s") <= 4


def test_the_loss_of_an_epoch_is_the_mean_over_its_images() -> None:
    logits, labels = torch.randn(11, 10), torch.randint(10, (11,))
    mean = MeanLoss()
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
        mean.update(F.cross_entropy(logits[part], labels[part]), len(labels[part]))
    expected = F.cross_entropy(logits.double(), labels).item()
    assert mean.compute().item() == pytest.approx(expected, rel=1e-6)


def test_networks_are_one_graph_and_so_is_the_rule() -> None:
    """Of eight layers: ResNet-20 repeats their blocks."""
    network = adderize(CifarResNet(8), init="normal")
    images = torch.randn(2, 3, 32, 32)
    explained = torch._dynamo.explain(network)(images)
    assert explained.graph_count == 1 and explained.graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    compiled(images).sum().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    rule = torch.compile(
        lambda: scale_adder_gradients_(network, 0.2).norms, backend="eager", fullgraph=True
    )
    norms = rule()
    adders = [m for m in network.modules() if hasattr(m, "gradient")]
    assert len(norms) == len(adders) == 8
    for layer in adders:
        assert layer.weight.grad.square().mean().sqrt() == pytest.approx(0.2, rel=1e-4)
    assert torch.equal(network.fc.weight.grad, expected["fc.weight"])
    torch._dynamo.reset()


# What waits for a device, because the host needs a number from it.
WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
}


class _NoWaiting(TorchDispatchMode):
    """Fails where the host needs a number from the device, or sends it one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITS:
            raise AssertionError(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        operands = [value for value in args if isinstance(value, Tensor)]
        moved = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if moved and len({value.device.type for value in (*operands, result)}) > 1:
            raise AssertionError(f"{func} copies between the host and the device")
        return result


class _Watched(StopOnBrokenLoss):
    """No step but every third may wait: the callbacks of this library log there."""

    steps = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._mode = contextlib.ExitStack()
        if not trainer._logger_connector.should_update_logs:
            self._mode.enter_context(_NoWaiting())
            _Watched.steps += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._mode.close()


@pytest.mark.parametrize("more", [(), ("--accumulate", "2", "--clip", "1", "--data-on-device")])
def test_no_training_step_waits_for_the_device(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "StopOnBrokenLoss", _Watched)
    monkeypatch.setattr(_Watched, "steps", 0)
    cifar.train(arguments(tmp_path / "run", "--recalibrate", "0", *more))
    assert _Watched.steps >= 4


def test_the_watch_fails_where_something_waits() -> None:
    with pytest.raises(AssertionError, match="waits"), _NoWaiting():
        torch.ones(1).item()


def _move(module: nn.Module) -> None:
    """To the fake device; `Module.to` would start a real one."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="cuda"))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cuda")
        if isinstance(part, TopK):
            part.right, part.total = (torch.zeros((), device="cuda").long() for _ in range(2))


@pytest.mark.skipif(
    torch.__version__ < (2, 7) and not torch.cuda.is_available(),
    reason="torch 2.6 aborts at fake tensors of a device that is not there",
)
def test_a_step_on_a_gpu_copies_nothing_from_the_host() -> None:
    """On fake tensors of a CUDA device, for which autograd cannot run the backward pass."""
    data = load_cifar("cifar10", "fake")
    module = ImageClassifier(BATCH_NORMS, 10, conversion={"init": "normal"})
    with FakeTensorMode(allow_non_fake_inputs=True):
        splits = (ImageSet(*(torch.empty_like(t, device="cuda") for t in s)) for s in data[1:3])
        images = InMemoryImages(
            Dataset(data.name, *splits, *data[3:]), 32, 0, augment=CROP_AND_FLIP, channels_last=True
        )
        _move(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        loader = images.training_loader()
        batches = (loader.dataset[indices] for indices in loader.sampler)
        for number in range(3):
            # The order and the draws of an epoch are copied with its first batch.
            with contextlib.nullcontext() if number == 0 else _NoWaiting():
                pixels, labels = images.on_after_batch_transfer(next(batches), 0)
                assert pixels.device.type == labels.device.type == "cuda"
                logits = module(pixels)
                assert F.cross_entropy(logits, labels).device.type == "cuda"
                for parameter in module.parameters():
                    parameter.grad = torch.empty_like(parameter)
                for name, accuracy in module.accuracies.items():
                    if name.startswith("train"):
                        accuracy.update(logits, labels)
                scale_adder_gradients_(module, 0.2)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
