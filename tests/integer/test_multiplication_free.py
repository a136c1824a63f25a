"""Whole networks whose every scale is a sum of shifts."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adderize import AdderConv2d, AdderizeError, adderize, count
from adderize.integer import multiplication_free, shift_report
from adderize.layers import ShiftAddConv2d, ShiftAddLinear, ShiftAddNorm1d, ShiftAddNorm2d
from adderize.models import lenet5_bn, resnet20, vgg_small


def trained(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms as after a training."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 4)
    return model.eval()


def fewest_terms(value: float) -> int:
    """The least number of signed powers of two whose sum a float is (its non-adjacent form)."""
    mantissa = int(math.ldexp(abs(math.frexp(value)[0]), 53))
    return (mantissa ^ (3 * mantissa)).bit_count()


class Products(TorchDispatchMode):
    """Every product that is computed, and the constant in it; raises where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mul", "mul_"):
            self.constants.append(torch.as_tensor(args[1]))
        elif name in ("convolution", "mkldnn_convolution", "_prelu_kernel"):
            self.constants.append(args[1])
        elif name == "addmm":
            self.constants.append(args[2])
        else:
            assert "adderize" in str(func) or name in PLAIN, name
        return func(*args, **(kwargs or {}))


PLAIN = {
    "add", "avg_pool2d", "cat", "clamp", "detach", "hardtanh", "max_pool2d_with_indices", "mean",
    "permute", "relu", "select", "slice", "sub", "sum", "t", "transpose", "unsqueeze", "view",
    "constant_pad_nd", "reflection_pad2d", "clone", "_unsafe_view", "squeeze", "neg", "expand",
    "reshape", "split", "unfold",
}  # fmt: skip


def check_products(network: nn.Module, x: Tensor, terms: int) -> Tensor:
    with torch.no_grad(), Products() as products:
        output: Tensor = network(x)
    assert products.constants
    for constant in products.constants:
        assert max(map(fewest_terms, constant.flatten().tolist())) <= terms
    return output


class Everything(nn.Module):
    """Each operation that has a form: as modules, functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.leaky, self.slopes = nn.LeakyReLU(0.1), nn.PReLU(8)
        self.pool, self.dropout = nn.AvgPool2d(2), nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(x)))
        y = self.leaky(self.norm(self.body(x))) * self.gain.view(-1, 1, 1)
        x = self.pool(self.slopes(x + y) / 3)
        x = F.leaky_relu(F.max_pool2d(x, 2), 0.01)
        x = torch.cat([x, 0.75 * F.avg_pool2d(x, 3, 1, 1)], 1)
        return self.head(self.dropout(x).mean((2, 3)))


class OneCall(nn.Module):
    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.adder, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.norm(self.adder(self.first(x))))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lenet5_bn, (1, 32, 32)),
        (resnet20, (3, 32, 32)),
        (lambda: resnet20(shortcut="A", logits_norm=False), (3, 32, 32)),
        (vgg_small, (3, 32, 32)),
        (Everything, (3, 16, 16)),
    ],
)
def test_every_product_is_with_a_sum_of_few_powers_of_two(
    build: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    model = trained(adderize(build()))
    x = torch.randn(2, *size)
    network = multiplication_free(model, norm_terms=3, filter_terms=2)
    check_products(network, x, 3)
    assert not shift_report(network).remarks
    exact = multiplication_free(model, norm_terms=24, filter_terms=24)
    assert torch.allclose(check_products(exact, x, 24), model(x), rtol=1e-4, atol=1e-4)


def test_the_model_itself_stays_as_it_was() -> None:
    model, x = trained(adderize(lenet5_bn())), torch.randn(2, 1, 32, 32)
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    multiplication_free(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(x), expected)


def test_inserted_norms_and_adder_linear_layers() -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 36, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    model = trained(adderize(plain, stem=True, head=True, linear=True))
    network = multiplication_free(model, norm_terms=24)
    kinds = [type(layer.norm) for layer in network.modules() if hasattr(layer, "norm")]
    assert kinds == [ShiftAddNorm2d, ShiftAddNorm2d, ShiftAddNorm1d, ShiftAddNorm1d]
    x = torch.randn(3, 3, 10, 10)
    assert torch.allclose(network(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_norm_behind_a_kept_convolution_is_rounded_with_its_weights() -> None:
    model = trained(adderize(resnet20()))
    network = multiplication_free(model, filter_terms=2)
    assert isinstance(network.conv1, ShiftAddConv2d) and not hasattr(network, "bn1")
    folded = model.conv1.weight * (model.bn1.weight * (model.bn1.running_var + 1e-5).rsqrt()).view(
        -1, 1, 1, 1
    )
    errors = ((network.conv1.weight - folded) / folded).abs()
    assert float(errors.max()) <= 1 / 11 + 1e-4


def test_a_layer_that_is_called_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.head(x)))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4), Twice()).eval()
    network = multiplication_free(model, filter_terms=24)
    x = torch.randn(2, 3, 3, 3)
    assert torch.allclose(network(x), model(x), atol=1e-5)
    assert [row.layer for row in shift_report(network).layers] == ["0", "2", "3.head"]


def test_a_dead_channel_gives_its_bias() -> None:
    model = trained(adderize(lenet5_bn()))
    model.bn2.weight.data[3] = 0
    network = multiplication_free(model)
    channel = network.bn2(torch.randn(1, 16, 2, 2))[0, 3]
    assert float(network.bn2.weight[3]) == 0
    assert torch.equal(channel, model.bn2.bias[3].expand(2, 2))


REFUSED = {
    "sigmoid": torch.sigmoid,
    "two computed values": lambda x: x * x.mean((2, 3), keepdim=True),
    "divides by a computed value": lambda x: 1 / x,
    "softmax": lambda x: F.softmax(x, 1),
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "pow": lambda x: x**2,
    "matmul": lambda x: x @ x.transpose(2, 3),
    "alpha": lambda x: torch.add(x, x, alpha=2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "size from its input": lambda x: F.avg_pool2d(x, x.shape[2]),
    "differs from place to place": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "weighs neighbours": nn.Upsample(scale_factor=2, mode="bilinear"),
    "GroupNorm": nn.GroupNorm(2, 4),
    "SiLU": nn.SiLU(),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 4, 3),
    "statistics of its input": nn.BatchNorm2d(4, track_running_stats=False),
}


FREE = {
    "upsample": nn.Upsample(scale_factor=2),
    "upsample exact": nn.Upsample(size=5, mode="nearest-exact"),
    "flip": lambda x: x.flip(3),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "argmax": lambda x: x.argmax(1),
    "narrow": lambda x: x.narrow(2, 1, 3).select(3, 0),
    "dropout": lambda x: torch.dropout(F.dropout(x, 0.0), p=0.5, train=False),
}


@pytest.mark.parametrize("name", FREE)
def test_what_only_moves_or_compares_stays(name: str) -> None:
    model = adderize(OneCall(FREE[name]), include="adder", head=True).eval()
    network = multiplication_free(model, norm_terms=24, filter_terms=24)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(network(x), model(x), rtol=1e-3, atol=1e-4)
    assert count(network, (3, 8, 8)).after.multiplications == 0


class Pair(NamedTuple):
    alpha: Tensor
    beta: Tensor


@dataclass
class Record:
    alpha: Tensor
    beta: Tensor


@pytest.mark.parametrize("kind", [Pair, Record])
def test_several_results_in_a_class_of_their_own(kind: type) -> None:
    model = OneCall(lambda x: kind(alpha=x, beta=x.relu()))
    adderize(model, include="adder", head=True).eval()
    network = multiplication_free(model, norm_terms=24, filter_terms=24)
    x = torch.randn(2, 3, 8, 8)
    given, expected = network(x), model(x)
    assert type(given) is kind
    assert torch.allclose(given.alpha, expected.alpha, rtol=1e-3, atol=1e-4)
    assert torch.equal(given.beta, given.alpha.relu())


@pytest.mark.parametrize("why", REFUSED)
def test_what_multiplies_is_named(why: str) -> None:
    model = adderize(OneCall(REFUSED[why]), include="adder", head=True).eval()
    if why == "size from its input" and torch.__version__ < (2, 7):
        pytest.skip("torch 2.6 cannot trace it")
    with pytest.raises(AdderizeError, match=why):
        multiplication_free(model)
    network = multiplication_free(model, strict=False, norm_terms=24, filter_terms=24)
    assert any(why in remark for remark in shift_report(network).remarks)
    with pytest.raises(AdderizeError, match=f"but for .*{why}.*: pass the float model"):
        multiplication_free(network)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(network(x), model(x), rtol=1e-3, atol=1e-4)


def test_wrong_models_are_refused() -> None:
    model = adderize(lenet5_bn())
    with pytest.raises(AdderizeError, match=r"training mode.*eval\(\)"):
        multiplication_free(model)
    model.eval()
    with pytest.raises(AdderizeError, match="terms is 0"):
        multiplication_free(model, norm_terms=0)
    with pytest.raises(AdderizeError, match="float64"):
        multiplication_free(copy.deepcopy(model).double())
    with pytest.raises(AdderizeError, match="meta device"):
        multiplication_free(copy.deepcopy(model).to("meta"))
    with pytest.raises(AdderizeError, match="no multiplications any more"):
        multiplication_free(multiplication_free(model))
    broken = copy.deepcopy(model)
    broken.bn2.weight.data[1] = math.nan
    with pytest.raises(AdderizeError, match=r"bn2: a scale is nan"):
        multiplication_free(broken)
    with pytest.raises(AdderizeError, match="Module"):
        multiplication_free("resnet18")  # type: ignore[arg-type]


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(AdderizeError, match="cannot trace"):
        multiplication_free(Branches().eval())


def test_hooks_are_not_lost_in_silence() -> None:
    model = adderize(lenet5_bn()).eval()
    model.fc1.register_forward_hook(lambda *args: None)
    with pytest.raises(AdderizeError, match=r"fc1: it has forward hooks"):
        multiplication_free(model)


def test_the_report_copies_pickles_and_prints() -> None:
    network = multiplication_free(trained(adderize(lenet5_bn())))
    report = shift_report(network)
    kinds = {row.layer: (row.kind, row.scales, row.terms) for row in report.layers}
    assert kinds["conv1"] == ("ShiftAddConv2d", 150, 2) and kinds["bn2"] == (
        "ShiftAddNorm2d",
        16,
        3,
    )
    assert isinstance(network.fc1, ShiftAddLinear)
    assert shift_report(copy.deepcopy(network)) == report
    if torch.__version__ >= (2, 7):  # before, graphs with annotated results have no pickle
        assert shift_report(pickle.loads(pickle.dumps(copy.deepcopy(network)))) == report
        assert shift_report(copy.deepcopy(pickle.loads(pickle.dumps(network)))) == report
    assert "no product" in str(report) and "bn2" in report.to_markdown()
    assert type(report).from_dict(report.to_dict()) == report
    with pytest.raises(AdderizeError, match="multiplication_free"):
        shift_report(lenet5_bn())


class Changing(nn.Module):
    """A network that changes a tensor in place."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.conv, self.norm = AdderConv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.norm(self.conv(x)))


def through_a_slice(x: Tensor) -> Tensor:
    x[:, :2].relu_()
    return x


def through_a_chunk(x: Tensor) -> Tensor:
    x.chunk(2, 1)[0].clamp_(max=0.5)
    return x


def seen_in_a_view(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.relu_()
    return flat


def by_another_name(x: Tensor) -> Tensor:
    before = x
    x += 1
    return before


@pytest.mark.parametrize(
    "change", [through_a_slice, through_a_chunk, seen_in_a_view, by_another_name]
)
def test_changes_in_place_that_are_not_followed_are_refused(
    change: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(AdderizeError, match="in place, which is read later"):
        multiplication_free(Changing(change).eval())


def test_changes_in_place_that_are_followed() -> None:
    def statements(x: Tensor) -> Tensor:
        identity = F.relu(x, inplace=True)
        x = identity - 0.5
        x.clamp_(max=0.25)
        x += identity
        return F.relu_(x)

    network, x = Changing(statements).eval(), torch.randn(2, 3, 6, 6)
    found = multiplication_free(network, norm_terms=8)(x)
    torch.testing.assert_close(found, network(x), atol=1e-3, rtol=1e-3)


def test_norms_of_sequences_scale_channels() -> None:
    network = nn.Sequential(AdderConv2d(3, 6, 3), nn.Flatten(2), nn.BatchNorm1d(6)).eval()
    nn.init.uniform_(network[2].weight, 0.2, 2)
    nn.init.normal_(network[2].bias)
    x = torch.randn(2, 3, 4, 5)  # as many places as channels
    found = multiplication_free(network, norm_terms=8)(x)
    torch.testing.assert_close(found, network(x), atol=1e-2, rtol=1e-3)
