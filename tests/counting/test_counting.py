"""count(): hand counts, the views of a network, what is left alone, wrong input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from adderize import AdderizeError, adderize, count, restore
from adderize.counting.trace import blank_copy, trace
from adderize.formulas import FREE, Operations
from adderize.models import lenet5_bn


def dispatched(model: nn.Module, size: tuple[int, ...]) -> Operations:
    return sum((call.operations or FREE for call in trace(blank_copy(model), size)), FREE)


def test_lenet5_bn_by_hand() -> None:
    budget = count(lenet5_bn(), (1, 32, 32), stem=True, head=True, linear=True)
    pairs = 117_600 + 240_000 + 48_000 + 10_080 + 840
    norms, biases, pooled = 6 * 784 + 16 * 100, 120 + 84 + 10, 3 * (6 * 196 + 16 * 25)
    activations = norms + 120 + 84
    assert pairs == 416_520
    assert budget.before == Operations(
        multiplications=pairs + norms,
        additions=pairs + norms + biases,
        comparisons=activations + pooled,
    )
    # The adder network has a batch norm after each fully connected layer too.
    assert budget.after == Operations(
        multiplications=norms + biases,
        additions=2 * pairs + norms + 2 * biases,
        comparisons=activations + pooled,
    )
    assert budget.costs(budget.total, "before")["latency_cycles"] == 4 * 422_824 + 2 * 423_038
    assert budget.uncounted == ()


@pytest.mark.parametrize("build", [models.resnet18, models.vgg11, models.mobilenet_v2])
def test_views_are_the_networks_themselves(build: Callable[[], nn.Module]) -> None:
    size = (3, 64, 64)
    with torch.device("meta"):
        plain, adders = build(), adderize(build())
    budget = count(plain, size)
    assert budget.before == dispatched(plain, size)
    assert budget.after == dispatched(adders, size)
    again = count(adders, size)
    assert (again.before, again.after) == (budget.before, budget.after)
    assert again.before == dispatched(restore(adders), size)


def test_options_choose_what_is_converted() -> None:
    model = models.resnet18()
    budget = count(model, (3, 64, 64), include="layer4.*")
    adders = [layer.name for layer in budget.layers if layer.kind == "adder"]
    assert len(adders) == 5 and all(name.startswith("layer4.") for name in adders)
    part = adderize(copy.deepcopy(model), include="layer4.*")
    assert count(part, (3, 64, 64)).after == budget.after
    assert count(part, (3, 64, 64), include="*").after == count(model, (3, 64, 64)).after


def test_a_model_without_anything_to_convert_is_counted_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    budget = count(model, (8,))
    assert budget.before == budget.after == Operations(80, 90, comparisons=8)


def test_sums_by_layer_and_shared_layers() -> None:
    shared = nn.Conv2d(3, 3, 1, bias=False)
    budget = count(nn.Sequential(shared, shared, nn.BatchNorm2d(3)), (3, 2, 2), stem=True)
    assert [layer.name for layer in budget.layers] == ["0", "0.norm", "2"]
    assert budget.layers[0].after == Operations(additions=2 * 2 * 36)
    assert (budget.layers[1].before, budget.layers[1].after) == (FREE, Operations(24, 24))
    assert budget.after == sum((layer.after for layer in budget.layers), FREE)


def test_the_model_is_left_alone() -> None:
    model = models.resnet18().train()
    calls: list[str] = []
    model.layer1.register_forward_hook(lambda *_: calls.append("hook"))
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    parameters = dict(model.named_parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, (3, 64, 64))
    assert model.training and model.layer1.training and not calls
    assert len(model.layer1._forward_hooks) == 1 and type(model.layer1[0].conv1) is nn.Conv2d
    assert all(parameters[name] is tensor for name, tensor in model.named_parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))


def test_frozen_filters_are_no_matter(recwarn: pytest.WarningsRecorder) -> None:
    assert count(lenet5_bn().requires_grad_(False), (1, 32, 32)) is not None
    assert not recwarn.list


def test_a_model_with_constants_of_its_own() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.rand(4)
            self.layer = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.mask + torch.ones(4))

    assert count(Masked(), (4,)).before == Operations(4 + 8, 4 + 8)


def test_uncounted_operators_are_listed() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x).values + torch.i0(x)

    budget = count(nn.Sequential(nn.Linear(4, 4), Sorted()), (4,))
    found = {(item.operator, item.layer, item.calls) for item in budget.uncounted}
    assert found == {("aten::sort", "1", 1), ("aten::i0", "1", 1)}
    assert "not counted: aten::sort in 1, 1 call" in str(budget)


class NeedsValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "model, size, message",
    [
        (nn.Conv2d(3, 4, 3), None, "does not say how large its input is"),
        (nn.Conv2d(3, 4, 3), (0, 8, 8), "expected positive integers"),
        (nn.Conv2d(3, 4, 3), (3, 8.5, 8), "expected positive integers"),
        (nn.Conv2d(3, 4, 3), 224, "input_size is 224; expected positive integers"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 8, 8), r"through 0, Conv2d\(3, 4"),
        (nn.Sequential(nn.Linear(3, 4)), (5,), r"through 0, Linear\(in_features=3"),
        (NeedsValues(), (4,), "must not depend on values"),
        (nn.LazyLinear(3), (4,), "has no shape yet"),
        (nn.MSELoss(), (4,), "must take one tensor"),
    ],
)
def test_wrong_models_and_sizes(model: nn.Module, size: Any, message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        count(model, size)


def test_options_are_checked() -> None:
    with pytest.raises(AdderizeError, match="nonsense"):
        count(models.resnet18(), (3, 64, 64), include="nonsense*")
    with pytest.raises(TypeError, match="steam"):
        count(models.resnet18(), (3, 64, 64), steam=True)


def test_input_size_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(6, 2))
    model.example_input_array = torch.zeros(1, 6)
    assert count(model).input_size == (6,)
    timm = pytest.importorskip("timm")
    assert count(timm.create_model("inception_v3")).input_size == (3, 299, 299)
