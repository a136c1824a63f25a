"""Three independent counts of a network agree, and agree with hand counts of single layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from adderize import AdderConv2d, AdderLinear, adderize, count, counting
from adderize.counting import COUNTERS, Counter, FlopCountAnalysis
from adderize.counting.trace import blank_copy, trace
from adderize.formulas import FREE, Operations
from adderize.models import by_name


def dispatched(model: nn.Module, size: tuple[int, ...]) -> Operations:
    calls = trace(blank_copy(model), size)
    assert all(call.operations is not None for call in calls)
    return sum((call.operations or FREE for call in calls), FREE)


def traced_by_fvcore(model: nn.Module, size: tuple[int, ...]) -> Operations:
    analysis = FlopCountAnalysis(model.eval(), torch.randn(1, *size))
    operations = analysis.operations()
    assert not analysis.unsupported_ops()
    return operations


# Names, as `adderize count` takes them, and the side of the image.
FAMILIES = {
    "resnet18": 64, "resnet50": 64, "vgg16_bn": 32, "densenet121": 64, "inception_v3": 96,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "shufflenet_v2_x0_5": 64,
    "regnet_y_400mf": 64, "convnext_tiny": 64, "vit_b_16": 224, "swin_t": 64,
    "timm:mixer_s16_224": 224, "timm:tf_efficientnet_b0": 64, "timm:levit_128s": 224,
    "timm:nf_resnet26": 64, "timm:mobilevit_xxs": 256,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_dispatcher_and_fvcore_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every layer, before and after the conversion; nothing is left out."""
    # What takes longest, the conversion, is the same for both.
    monkeypatch.setattr(counting, "adder_twin", cache(counting.adder_twin))
    network, size = by_name.blank(name), (3, FAMILIES[name], FAMILIES[name])
    budget = count(network, size)
    assert budget == count(network, size, counter="fvcore")
    assert not budget.uncounted
    assert budget.before.multiplications > 10**6


def converted(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: adderize(build(), init="keep")


NETWORKS = {
    "resnet50": (models.resnet50, 64),
    "vit_b_16": (models.vit_b_16, 224),
    "adder resnet18": (converted(models.resnet18), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_counts_the_same_products(name: str) -> None:
    """Torch counts matrix products, convolutions and adders, two operations a pair, no biases."""
    build, side = NETWORKS[name]
    twin = blank_copy(build())
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(1, 3, side, side, device="meta"))
    flops = 0
    for call in trace(twin, (3, side, side)):
        kind = call.operator.rpartition("::")[2]
        operations = call.operations or FREE
        if kind in ("convolution", "addmm", "mm", "bmm"):
            flops += 2 * operations.multiplications
        elif kind == "adder_conv2d":
            flops += operations.additions
    assert flops == counter.get_total_flops()


SINGLE = {
    # layer, input size, expected; counted by hand.
    "convolution": (nn.Conv2d(4, 6, 3), (4, 5, 5), Operations(1944, 1944 + 54)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5), Operations(972, 972)),
    "same padding": (nn.Conv2d(1, 1, 3, padding="same"), (1, 3, 3), Operations(81, 81 + 9)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, bias=False), (2, 4, 4), Operations(384, 384)),
    "adder": (AdderConv2d(4, 6, 3), (4, 5, 5), Operations(0, 2 * 1944 + 54)),
    "adder linear": (AdderLinear(7, 5), (7,), Operations(0, 70 + 5)),
    "linear": (nn.Linear(7, 5), (7,), Operations(35, 35 + 5)),
    "batch norm": (nn.BatchNorm2d(3), (3, 4, 4), Operations(48, 48)),
    "layer norm": (nn.LayerNorm(8), (5, 8), Operations(120 + 10, 160 + 5, other=5)),
    "group norm": (nn.GroupNorm(2, 4), (4, 3), Operations(36 + 4, 48 + 2, other=2)),
    "instance norm": (nn.InstanceNorm2d(2), (2, 3, 3), Operations(36 + 4, 54 + 2, other=2)),
    "rms norm": (nn.RMSNorm(8), (5, 8), Operations(120 + 5, 40 + 5, other=5)),
    "relu": (nn.ReLU(), (5,), Operations(comparisons=5)),
    "relu6": (nn.ReLU6(), (5,), Operations(comparisons=10)),
    "hardswish": (nn.Hardswish(), (5,), Operations(10, 5, comparisons=10)),
    "gelu": (nn.GELU(), (5,), Operations(15, 5, other=5)),
    "silu": (nn.SiLU(), (5,), Operations(5, other=5)),
    "sigmoid": (nn.Sigmoid(), (5,), Operations(other=5)),
    "softmax": (nn.Softmax(dim=1), (5,), Operations(additions=10, comparisons=5, other=10)),
    "max pool": (nn.MaxPool2d(2), (3, 4, 4), Operations(comparisons=36)),
    "average pool": (nn.AvgPool2d(2), (3, 4, 4), Operations(12, 48)),
    "global pool": (nn.AdaptiveAvgPool2d(1), (3, 4, 4), Operations(3, 48)),
    "adaptive pool": (nn.AdaptiveAvgPool2d(2), (1, 3, 3), Operations(4, 16)),
    "dropout": (nn.Dropout(), (5,), FREE),
    "dropout of channels": (nn.Dropout2d(), (2, 3, 3), FREE),
    "alpha dropout": (nn.AlphaDropout(), (5,), FREE),
    "flatten": (nn.Flatten(), (3, 4), FREE),
    "upsample": (nn.UpsamplingBilinear2d(scale_factor=2), (1, 2, 2), Operations(64, 48)),
    "linear upsample": (nn.Upsample(6, mode="linear"), (2, 3), Operations(2 * 12, 12)),
    "trilinear upsample": (
        nn.Upsample((2, 2, 4), mode="trilinear"),
        (1, 1, 2, 2),
        Operations(8 * 16, 7 * 16),
    ),
    "nearest upsample 1d": (nn.Upsample(scale_factor=2), (2, 3), FREE),
    "nearest upsample 3d": (nn.Upsample(scale_factor=2), (2, 3, 3, 3), FREE),
    "nearest-exact upsample": (nn.Upsample((5, 7), mode="nearest-exact"), (1, 3, 3), FREE),
    "area resize": (nn.Upsample(scale_factor=0.5, mode="area"), (1, 4, 4), Operations(4, 16)),
    "reflection padding 3d": (nn.ReflectionPad3d(1), (1, 2, 2, 2), FREE),
    "replication padding 3d": (nn.ReplicationPad3d(1), (1, 2, 2, 2), FREE),
    "log sigmoid": (nn.LogSigmoid(), (5,), Operations(additions=5, comparisons=5, other=10)),
    "soft shrink": (nn.Softshrink(), (5,), Operations(additions=5, comparisons=10)),
    "random relu": (nn.RReLU(), (5,), Operations(5, comparisons=5)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_layer_of_each_kind(name: str) -> None:
    layer, size, expected = SINGLE[name]
    assert dispatched(nn.Sequential(layer), size) == expected
    assert traced_by_fvcore(nn.Sequential(layer), size) == expected


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(x.shape[1]) * 2 // 2
        return torch.add(x, x[:, index], alpha=0.5) + 1


def test_residual_additions_count_and_index_arithmetic_does_not() -> None:
    assert dispatched(Residual(), (4, 2)) == Operations(multiplications=8, additions=16)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def heads(x: Tensor) -> Tensor:
    return x.view(1, 2, -1, 4)


def attention(x: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), **options)


# 2 heads, 5 queries and keys of width 4: 50 logits.
ATTENTION = Operations(
    multiplications=2 * 40 + 2 * 50 * 4, additions=2 * 50 * 4 + 100, comparisons=50, other=100
)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Operations]] = {
    "attention": (attention, ATTENTION),
    "masked attention": (
        lambda x: attention(x, attn_mask=torch.zeros(5, 5)),
        ATTENTION + Operations(additions=50),
    ),
    "causal attention": (
        lambda x: attention(x, is_causal=True),
        ATTENTION + Operations(additions=50),
    ),
    "einsum": (
        lambda x: torch.einsum("bhid,bhjd->bhij", heads(x), heads(x)),
        Operations(50 * 4, 50 * 4),
    ),
    "einsum of all leading dimensions": (
        lambda x: torch.einsum("...i,oi->...o", heads(x), torch.ones(3, 4)),
        Operations(30 * 4, 30 * 4),
    ),
    "einsum without a result": (
        lambda x: torch.einsum("zhi,oi", heads(x)[0], torch.ones(3, 4)),
        Operations(30 * 4, 30 * 4),
    ),
    "einsum without a sum": (
        lambda x: torch.einsum("...i,...i->...i", heads(x), heads(x)),
        Operations(40),
    ),
    "einsum that sums one operand first": (
        lambda x: torch.einsum("bhij,oi->bo", heads(x), torch.ones(3, 5)),
        Operations(15, 40 + 15),
    ),
    "dot": (lambda x: x * torch.dot(torch.ones(5), torch.ones(5)), Operations(5 + 40, 5)),
    "vdot": (lambda x: x * torch.vdot(torch.ones(5), torch.ones(5)), Operations(5 + 40, 5)),
    "einsum of one operand": (lambda x: torch.einsum("...i->...", heads(x)), Operations(0, 40)),
    "tensordot": (
        lambda x: torch.tensordot(heads(x), torch.ones(3, 4), dims=([3], [1])),
        Operations(30 * 4, 30 * 4),
    ),
    "dropout in evaluation": (
        lambda x: F.dropout(x, 0.5, training=True),
        Operations(40, other=40),
    ),
    "matmul": (lambda x: heads(x) @ heads(x).mT, Operations(50 * 4, 50 * 4)),
    "square": (torch.square, Operations(40)),
    "powers": (lambda x: x**2 + x**3 + x**0.5, Operations(3 * 40, 2 * 40, other=40)),
    "maxima": (lambda x: torch.max(x, -x) + x.max(), Operations(0, 40, comparisons=40 + 39)),
    "mean": (lambda x: x.mean(dim=1), Operations(1, 40)),
    "variance": (lambda x: x.var(dim=1), Operations(40 + 2, 120)),
    "gate": (lambda x: x * x.sigmoid(), Operations(40, other=40)),
    "clamp": (lambda x: x.clamp(0, 1) - x.clamp(min=0), Operations(0, 40, comparisons=120)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, expected = FUNCTIONS[name]
    model = nn.Sequential(Function(function))
    assert dispatched(model, (40,)) == expected
    assert traced_by_fvcore(model, (40,)) == expected


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_dtype_counts(dtype: torch.dtype, counter: Counter) -> None:
    budget = count(nn.Conv2d(4, 6, 3).to(dtype), (4, 5, 5), counter=counter, exclude="*")
    assert budget.before == Operations(1944, 1944 + 54)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight) + self.bias


@pytest.mark.parametrize("counter", COUNTERS)
def test_complex_arithmetic_is_listed(counter: Counter) -> None:
    budget = count(Spectrum(), (3, 4, 4), counter=counter)
    assert budget.before == Operations(additions=48)
    assert [item.operator for item in budget.uncounted][1] == "aten::mul"
    assert len(budget.uncounted) == 3


@pytest.mark.parametrize("counter", COUNTERS)
def test_layers_that_give_a_single_number(counter: Counter) -> None:
    (layer,) = count(Function(torch.mean), (4, 5), counter=counter).layers
    assert layer.before == Operations(1, 20)


class _Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        number = x.sum()
        for _ in range(60):
            number = number * number
        return x + number


def test_numbers_that_are_used_twice_are_followed_once() -> None:
    """60 products of a single number, whose origins double with each one."""
    assert count(_Squares(), (1, 3), counter="fvcore").before.multiplications == 60
