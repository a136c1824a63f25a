"""Wrong uses: each has its one clear error, and leaves the model alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import (
    parametrizations,
    prune,
)

from adderize import AdderConv2d, AdderizeError, adderize, plan
from tests.surgery.test_adderize import adder_names, small_cnn


def with_layer(change):
    model = small_cnn()
    change(model)
    return model


def qat(model: nn.Sequential) -> None:
    conv = model[1][0]
    configuration = torch.ao.quantization.get_default_qat_qconfig("x86")
    conv.qconfig = configuration
    model[1][0] = torch.ao.nn.qat.Conv2d.from_float(conv)


def observed() -> nn.Module:
    model = small_cnn().eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    return torch.ao.quantization.prepare(model)


def quantized(model: nn.Sequential) -> None:
    model[1][0] = torch.ao.nn.quantized.Conv2d(8, 8, 3)


def lazy(model: nn.Sequential) -> None:
    model[1][0] = nn.LazyConv2d(8, 3, padding=1)


def old_weight_norm(model: nn.Sequential) -> None:
    torch.nn.utils.spectral_norm(model[1][0])


WRONG_MODELS = {
    "a tensor": (lambda: torch.zeros(1), "torch.nn.Module"),
    "data parallel": (lambda: nn.DataParallel(small_cnn()), "before wrapping"),
    "compiled": (lambda: torch.compile(small_cnn()), "convert the model first"),
    "compiled in place": (lambda: with_layer(lambda m: m.compile()), "convert the model first"),
    "a compiled part": (
        lambda: with_layer(lambda m: m.__setitem__(1, torch.compile(m[1]))),
        r"1 \(OptimizedModule\) is compiled",
    ),
    "scripted": (lambda: torch.jit.script(small_cnn()), "scripted"),
    "parametrised": (
        lambda: with_layer(lambda m: parametrizations.weight_norm(m[1][0])),
        r"1\.0 .*parametris",
    ),
    "spectral norm by hook": (lambda: with_layer(old_weight_norm), r"1\.0 .*computes its weight"),
    "pruned": (
        lambda: with_layer(lambda m: prune.l1_unstructured(m[1][0], "weight", 3)),
        r"1\.0 .*prune\.remove",
    ),
    "lazy": (lambda: with_layer(lazy), r"1\.0 .*one forward pass"),
    "prepared for training with quantization": (
        lambda: with_layer(qat),
        r"1\.0\.weight_fake_quant .*prepared for torch's quantization",
    ),
    "prepared for quantization": (
        observed,
        r"0\.0\.activation_post_process .*prepared for torch's quantization",
    ),
    "quantized": (lambda: with_layer(quantized), r"1\.0 .*quantized"),
    "half precision": (lambda: small_cnn().half(), r"1\.0 .*float16.*autocast"),
    "bfloat16": (lambda: small_cnn().bfloat16(), r"1\.0 .*bfloat16.*autocast"),
    "no convolutions": (lambda: nn.Sequential(nn.ReLU()), "no convolution"),
    "only linear layers": (lambda: nn.Sequential(nn.Linear(2, 2)), "'linear layer'"),
    "one convolution": (lambda: nn.Conv2d(1, 1, 3), "'stem: reads the input'"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_models(case):
    build, words = WRONG_MODELS[case]
    model = build()
    with pytest.raises(AdderizeError, match=words):
        adderize(model)
    if isinstance(model, nn.Module):
        assert not any(isinstance(module, AdderConv2d) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": "layer9.*"}, "'layer9.*' matches no layer: layers have names like '0.0'"),
        ({"include": "1"}, r"did you mean '1\.\*'"),
        ({"include": ["1.*", "9"]}, "'9' matches no layer"),
        ({"exclude": ["nothing"]}, "'nothing' matches no layer"),
        ({"exclude": ["1.0", "2.0"]}, "nothing to convert.*left out by pattern"),
        ({"include": 3}, "expected names"),
        ({"include": [3]}, "expected names"),
        ({"init": "zeros"}, "init is 'zeros'; expected one of 'rescale', 'normal', 'keep'"),
        ({"scale": 0}, "scale is 0; expected a finite number above 0"),
        ({"scale": -8.0}, "scale is -8.0; expected"),
        ({"scale": float("inf")}, "scale is inf; expected"),
        ({"scale": float("nan")}, "scale is nan; expected"),
        ({"scale": "8"}, "scale is '8'; expected"),
        ({"scale": True}, "scale is True; expected"),
        ({"init": "keep", "scale": 8.0}, "scale is 8.0, but init='keep' scales nothing"),
        ({"norm": "maybe"}, "'insert', 'require', 'ignore'"),
        ({"gradient": "half"}, "'full', 'sign', 'sign_input'"),
        ({"stem": "false"}, "stem is 'false'; expected True or False"),
        ({"depthwise": 0}, "depthwise is 0; expected True or False"),
        ({"inplace": None}, "inplace is None; expected True or False"),
        ({"norm": "require"}, r"no trainable batch or instance norm follows 2\.0"),
    ],
)
def test_wrong_options(options, words):
    model = small_cnn()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdderizeError, match=words):
        adderize(model, **options)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_that_cannot_be_copied():
    model = small_cnn()
    model.kept = model(torch.randn(2, 3, 8, 8))
    with pytest.raises(AdderizeError, match=r"cannot be copied .*deepcopy.*in place"):
        adderize(model, inplace=False)
    assert not adder_names(model)
    assert adder_names(adderize(model)) == ["1.0", "2.0"]


def test_a_troublesome_layer_can_be_left_out():
    model = with_layer(lambda m: parametrizations.weight_norm(m[1][0]))
    adderize(model, exclude="1.0")
    assert isinstance(model[2][0], AdderConv2d)


def test_lazy_modules_beside_the_layers_do_no_harm():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.LazyBatchNorm2d(),
        nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    assert [row.decision for row in plan(model).rows] == ["keep", "convert", "keep"]
    adderize(model)
    images = torch.randn(2, 3, 7, 7)
    assert model(images).shape == (2, 3)
    expected = -(
        (F.unfold(model[:2](images).double(), 3).transpose(1, 2)[:, :, None])
        - model[2].weight.double().flatten(1)
    ).abs().sum(3).transpose(1, 2).view(2, 6, 3, 3) + model[2].bias.double().view(-1, 1, 1)
    torch.testing.assert_close(model[2](model[:2](images)).double(), expected, rtol=1e-5, atol=1e-4)


def test_adders_that_exist_need_norms_too():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), AdderConv2d(4, 4, 3), nn.ReLU(),
        AdderConv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert [row.norm for row in plan(model).rows] == ["", "none", "4", "6", ""]
    with pytest.raises(AdderizeError, match="no trainable batch or instance norm follows 1:"):
        adderize(model, norm="require")
    assert type(model[5]) is nn.Conv2d
    assert adder_names(adderize(model, norm="require", exclude="1", inplace=False)) == list("135")
    model[1].norm = nn.BatchNorm2d(4)
    adderize(model, norm="require")
    assert [row.norm for row in plan(model).rows] == ["", "1.norm", "4", "6", ""]
    model[1].norm.requires_grad_(False)
    with pytest.raises(AdderizeError, match="no trainable batch or instance norm follows 1:"):
        adderize(model, norm="require")


def test_a_network_over_one_dimension_is_told_how_to_be_written() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3))
    with pytest.raises(AdderizeError, match=r"nothing to convert.*Conv2d over images of height 1"):
        adderize(model, stem=True, head=True)
