"""AdderConv2d and AdderLinear beside torch's own layers."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adderize import AdderConv2d, AdderizeError, AdderLinear
from adderize.functional import adder_conv2d

CONFIGURATIONS = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "padding": (1, 0), "padding_mode": "zeros"},
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_constructor_attributes_and_state_dict_are_a_convolutions(options: dict) -> None:
    adder, conv = AdderConv2d(4, 6, 3, **options), nn.Conv2d(4, 6, 3, **options)
    for name in nn.Conv2d.__constants__:
        assert getattr(adder, name) == getattr(conv, name), name
    assert {k: v.shape for k, v in adder.state_dict().items()} == {
        k: v.shape for k, v in conv.state_dict().items()
    }
    assert repr(adder) == repr(conv).replace("Conv2d", "AdderConv2d")
    assert not isinstance(adder, nn.Conv2d)
    x = torch.randn(2, 4, 9, 9)
    assert adder(x).shape == conv(x).shape


@pytest.mark.parametrize(
    ("adder", "torch_layer"), [(AdderConv2d, nn.Conv2d), (AdderLinear, nn.Linear)]
)
def test_signature_extends_torchs(adder: type, torch_layer: type) -> None:
    ours, theirs = (inspect.signature(layer).parameters for layer in (adder, torch_layer))
    assert [*theirs] == [*ours][:-1] and [*ours][-1] == "gradient"
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode: str, padding: int | tuple[int, int] | str) -> None:
    layer = AdderConv2d(3, 5, (3, 4), padding=padding, padding_mode=mode)
    x = torch.randn(2, 3, 8, 9)
    conv = nn.Conv2d(3, 5, (3, 4), padding=padding, padding_mode=mode)
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    torch.testing.assert_close(layer(x), adder_conv2d(padded, layer.weight, layer.bias))


def test_filters_start_from_a_standard_normal_and_the_bias_from_zero() -> None:
    for layer in (AdderConv2d(64, 64, 3), AdderLinear(256, 128)):
        assert abs(layer.weight.mean()) < 0.02
        assert abs(layer.weight.std() - 1) < 0.02
        assert not layer.bias.any()


def test_norm_child_is_applied_and_saved_under_its_own_keys() -> None:
    layer = AdderConv2d(3, 5, 3, bias=False)
    plain = layer(torch.ones(2, 3, 6, 6))
    layer.norm = nn.BatchNorm2d(5)
    assert "norm.weight" in layer.state_dict()
    expected = F.batch_norm(plain, None, None, training=True)
    torch.testing.assert_close(layer(torch.ones(2, 3, 6, 6)), expected)
    assert "norm" in repr(layer)


def test_linear_norm_sees_rows() -> None:
    layer = AdderLinear(7, 5)
    layer.norm = nn.BatchNorm1d(5)
    x = torch.randn(3, 4, 7)
    output = layer(x)
    assert output.shape == (3, 4, 5)
    torch.testing.assert_close(output.mean((0, 1)), torch.zeros(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [AdderConv2d(2, 3, 3), AdderLinear(4, 5)])
def test_checkpoints_of_the_authors_load_strictly(layer: nn.Module) -> None:
    state = {k: torch.randn_like(v) for k, v in layer.state_dict().items()}
    theirs = {"0.adder": state["weight"], "0.b": state["bias"]}
    model = nn.Sequential(copy.deepcopy(layer))
    model.load_state_dict(theirs)
    assert torch.equal(model[0].weight, state["weight"])
    assert torch.equal(model[0].bias, state["bias"])
    assert set(theirs) == {"0.adder", "0.b"}


def test_unexpected_keys_are_still_reported() -> None:
    layer = AdderConv2d(2, 3, 3)
    state = {**layer.state_dict(), "adder": torch.randn(3, 2, 3, 3)}
    with pytest.raises(RuntimeError, match="adder"):
        layer.load_state_dict(state)


def test_layers_pickle_copy_and_move() -> None:
    layer = AdderConv2d(2, 3, 3, gradient="sign")
    x = torch.randn(1, 2, 5, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.gradient == "sign"
        assert torch.equal(twin(x), layer(x))
    assert layer.double()(x.double()).dtype == torch.float64
    assert AdderConv2d(2, 3, 3, device="meta")(x.to("meta")).shape == (1, 3, 3, 3)


def test_sign_gradient_is_shown_and_used() -> None:
    x = torch.randn(1, 2, 5, 5)
    layer = AdderConv2d(2, 3, 3, bias=False, gradient="sign")
    assert "gradient='sign'" in repr(layer)
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, layer.weight.grad.round())


def test_half_precision_model_says_what_to_do() -> None:
    layer = AdderConv2d(2, 3, 3).half()
    with pytest.raises(AdderizeError, match="16-mixed"):
        layer(torch.randn(1, 2, 5, 5).half())


@pytest.mark.parametrize("layer", [AdderConv2d, AdderLinear])
def test_unknown_gradient_is_refused(layer: type) -> None:
    arguments = (2, 3, 3) if layer is AdderConv2d else (2, 3)
    with pytest.raises(AdderizeError, match="'full', 'sign', 'sign_input'"):
        layer(*arguments, gradient="exact")


@pytest.mark.parametrize("layer", [AdderConv2d, AdderLinear])
def test_half_precision_filters_are_refused_at_once(layer: type) -> None:
    arguments = (2, 3, 3) if layer is AdderConv2d else (2, 3)
    with pytest.raises(AdderizeError, match="mixed precision"):
        layer(*arguments, dtype=torch.bfloat16)


def test_training_in_train_and_eval_mode_agree() -> None:
    layer, x = AdderConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    assert torch.equal(layer.train()(x), layer.eval()(x))
