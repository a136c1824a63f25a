"""The rule itself: its result against the formula, what it leaves alone, and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.utils import parametrize

from adderize import AdderConv2d, AdderizeError, AdderLinear, scale_adder_gradients_
from adderize.training.adaptive_rate import AdderGradients


def make_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        AdderConv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        AdderLinear(4 * 36, 5),
        nn.BatchNorm1d(5),
    ).to(dtype)


def backward(net: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    images = torch.randn(4, 1, 6, 6, dtype=dtype)
    nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 3])).backward()


def set_gradient(layer: nn.Module, value: float) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    layer.weight.grad = torch.full_like(layer.weight, value)
    return layer.weight.grad


def by_formula(gradient: Tensor, eta: float) -> np.ndarray:
    g = gradient.double().numpy()
    return g * eta * math.sqrt(g.size) / np.sqrt((g * g).sum())


@pytest.mark.parametrize("eta", [0.2, 3.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_filter_gradient_gets_the_norm_of_the_formula(eta: float, dtype: torch.dtype) -> None:
    net = make_net(dtype).to(memory_format=torch.channels_last)
    backward(net, dtype)
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    result = scale_adder_gradients_(net, eta)
    for name, parameter in net.named_parameters():
        if name in ("3.weight", "6.weight"):
            expected = by_formula(before[name], eta)
            np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=2e-6)
            norm = parameter.grad.norm().item()
            assert norm == pytest.approx(eta * math.sqrt(parameter.numel()), rel=1e-5)
        else:
            assert torch.equal(parameter.grad, before[name]), name
    assert result.names == ["3", "6"]
    norms = [before[f"{name}.weight"].norm().item() for name in result.names]
    assert result.norms.tolist() == pytest.approx(norms, rel=1e-5)
    rates = [eta * math.sqrt(n) / norm for n, norm in zip((108, 720), norms, strict=True)]
    assert result.rates.tolist() == pytest.approx(rates, rel=1e-5)


def test_result_as_flat_metrics() -> None:
    result = AdderGradients(["a", "b.c"], torch.tensor([3.0, 4.0]), torch.tensor([0.5, 1.0]))
    assert result.to_dict() == {
        "grad_norm/a": 3.0,
        "adaptive_lr/a": 0.5,
        "grad_norm/b.c": 4.0,
        "adaptive_lr/b.c": 1.0,
    }


@pytest.mark.parametrize("value", [0.0, 1e-14, math.nan, math.inf, -math.inf])
def test_vanishing_and_non_finite_gradients_are_left_alone(value: float) -> None:
    net = make_net()
    left, scaled = set_gradient(net[3], value), set_gradient(net[6], 2.0)
    before = left.clone()
    result = scale_adder_gradients_(net)
    torch.testing.assert_close(left, before, rtol=0, atol=0, equal_nan=True)
    assert result.rates[0] == 1.0
    assert scaled.norm().item() == pytest.approx(0.2 * math.sqrt(720), rel=1e-5)


def test_tiny_and_huge_gradients_are_scaled() -> None:
    net = make_net()
    tiny, huge = set_gradient(net[3], 1e-12), set_gradient(net[6], -1e15)
    scale_adder_gradients_(net)
    assert tiny.norm().item() == pytest.approx(0.2 * math.sqrt(108), rel=1e-5)
    assert huge.norm().item() == pytest.approx(0.2 * math.sqrt(720), rel=1e-5)


def test_only_filters_with_a_gradient_are_named() -> None:
    net = make_net()
    empty = scale_adder_gradients_(net)
    assert empty.names == [] and empty.norms.shape == empty.rates.shape == (0,)
    assert empty.to_dict() == {}
    set_gradient(net[6], 1.0)
    assert scale_adder_gradients_(net).names == ["6"]


def test_shared_layers_and_shared_filters_are_scaled_once() -> None:
    layer, twin = AdderLinear(4, 4), AdderLinear(4, 4)
    twin.weight = layer.weight
    net = nn.Sequential(layer, nn.BatchNorm1d(4), layer, nn.BatchNorm1d(4), twin)
    gradient = set_gradient(layer, 1.0)
    result = scale_adder_gradients_(net, 0.5)
    assert result.names == ["0"] and result.norms.tolist() == [4.0]
    assert gradient.norm().item() == pytest.approx(2.0)


def test_a_bare_layer_has_a_name() -> None:
    layer = AdderConv2d(2, 2, 1)
    set_gradient(layer, 1.0)
    assert scale_adder_gradients_(layer).names == ["AdderConv2d"]


def test_only_what_the_optimizer_holds_is_scaled() -> None:
    net = make_net()
    other, held = set_gradient(net[3], 1.0), set_gradient(net[6], 1.0)
    optimizer = torch.optim.SGD(net[6:].parameters(), lr=0.1)
    assert scale_adder_gradients_(net, optimizer=optimizer).names == ["6"]
    assert other.norm().item() == pytest.approx(math.sqrt(108))
    assert held.norm().item() == pytest.approx(0.2 * math.sqrt(720), rel=1e-5)


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever needs one on the host raises."""
    with FakeTensorMode():
        net = nn.Sequential(AdderConv2d(2, 3, 3), nn.BatchNorm2d(3), AdderLinear(5, 4))
        set_gradient(net[0], 1.0)
        set_gradient(net[2], 1.0)
        result = scale_adder_gradients_(net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
        assert result.names == ["0", "2"]
        with pytest.raises(DataDependentOutputException):
            result.to_dict()


def parametrised() -> nn.Module:
    net = make_net()
    parametrize.register_parametrization(net[3], "weight", nn.Identity())
    return net


def with_gradient_layout(layout: Callable[[Tensor], Tensor]) -> nn.Module:
    net = make_net()
    net[6].weight.grad = layout(torch.ones_like(net[6].weight))
    return net


@pytest.mark.parametrize(
    ("make", "eta", "message"),
    [
        (make_net, 0.0, "eta is 0"),
        (make_net, -0.2, "finite number above 0"),
        (make_net, math.nan, "eta is nan"),
        (make_net, math.inf, "eta is inf"),
        (make_net, "0.2", "eta is '0.2'"),
        (make_net, True, "eta is True"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1)), 0.2, r"call adderize\(model\) first"),
        (parametrised, 0.2, "layer 3: the filters are not a parameter"),
        (lambda: with_gradient_layout(Tensor.to_sparse), 0.2, "layer 6: .* torch.sparse_coo"),
    ],
)
def test_wrong_calls(make: Callable[[], nn.Module], eta: float, message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        scale_adder_gradients_(make(), eta)


def test_plain_loop_moves_filters_by_lr_times_eta_root_k() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backward(net)
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        scale_adder_gradients_(net, 0.2)
        before = [net[3].weight.detach().clone(), net[6].weight.detach().clone()]
        optimizer.step()
        moved = [(net[i].weight - w).norm().item() for i, w in zip((3, 6), before, strict=True)]
        assert moved == pytest.approx([0.02 * math.sqrt(108), 0.02 * math.sqrt(720)], rel=1e-4)


def test_fabric() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    net = make_net()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    images, labels = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 3])
    fabric.backward(nn.functional.cross_entropy(model(images), labels))
    fabric.clip_gradients(model, optimizer, max_norm=0.01)
    result = scale_adder_gradients_(model, 0.2, optimizer=optimizer)
    assert len(result.names) == 2
    for layer in (net[3], net[6]):
        norm = layer.weight.grad.norm().item()
        assert norm == pytest.approx(0.2 * math.sqrt(layer.weight.numel()), rel=1e-5)
    optimizer.step()
