"""Conversion: which layers, what survives, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn

from adderize import AdderConv2d, AdderLinear, adderize, plan, restore
from adderize.surgery import Decision, NormFix, Reason


def conv_bn(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class LeNet(nn.Module):
    """LeNet-5-BN, a batch norm after every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 5, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16)
        self.fc1, self.bn3 = nn.Linear(400, 120, bias=False), nn.BatchNorm1d(120)
        self.fc2, self.bn4 = nn.Linear(120, 84, bias=False), nn.BatchNorm1d(84)
        self.fc3, self.bn5 = nn.Linear(84, 10, bias=False), nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
        x = torch.max_pool2d(self.bn2(self.conv2(x)).relu(), 2).flatten(1)
        x = self.bn4(self.fc2(self.bn3(self.fc1(x)).relu())).relu()
        return self.bn5(self.fc3(x))


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        conv_bn(3, 8),
        conv_bn(8, 8),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def adder_names(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, (AdderConv2d, AdderLinear))]


@pytest.mark.parametrize(
    ("build", "converted", "inserted"),
    [
        (lambda: torchvision.models.resnet18(), 19, 0),
        (lambda: torchvision.models.resnet50(), 52, 0),
        (lambda: torchvision.models.vgg11(), 7, 7),
        (lambda: timm.create_model("resnet18"), 19, 0),
    ],
    ids=["resnet18", "resnet50", "vgg11", "timm-resnet18"],
)
def test_known_networks(build, converted, inserted):
    with torch.device("meta"):
        model = build()
    before = list(model.state_dict())
    rows = plan(model)
    assert adderize(model) is model
    assert adder_names(model) == rows.converted
    assert (len(rows.converted), len(rows.inserted)) == (converted, inserted)
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, AdderConv2d)))
    assert type(first) is nn.Conv2d
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    new = [key for key in model.state_dict() if key not in before]
    assert all(".norm." in key for key in new)
    assert len(new) == 5 * inserted
    assert list(restore(model).state_dict()) == before
    assert not adder_names(model)


def test_lenet_with_all_five_layers():
    model = adderize(LeNet(), stem=True, head=True, linear=True, init="normal", norm="require")
    assert adder_names(model) == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    for name in adder_names(model):
        gradient = model.get_submodule(name).weight.grad
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


def test_default_policy_on_lenet_keeps_stem_head_and_linear():
    rows = {row.name: row for row in plan(LeNet()).rows}
    assert rows["conv1"].reason.startswith("stem")
    assert rows["conv2"].decision == "convert"
    assert {rows[name].reason for name in ("fc1", "fc2", "fc3")} == {"linear layer"}
    rows = {row.name: row for row in plan(LeNet(), linear=True).rows}
    assert rows["fc3"].reason.startswith("head")
    assert rows["fc2"].decision == "convert"


def test_rows_decide_by_enumerations_and_print_words():
    rows = {row.name: row for row in plan(small_cnn()).rows}
    stem, conv = rows["0.0"], rows["2.0"]
    assert stem.decision is Decision.KEEP and stem.decision == "keep"
    assert stem.why is Reason.STEM and stem.reason == "stem: reads the input"
    assert conv.decision is Decision.CONVERT and conv.decision == "convert"
    assert conv.norm_fix is NormFix.INSERTED and conv.norm == "inserted"
    assert stem.norm_fix is NormFix.NOT_NEEDED and stem.norm == ""


def test_a_norm_that_is_named_inserted_is_found():
    net = nn.Sequential(
        OrderedDict(stem=conv_bn(3, 4), conv=nn.Conv2d(4, 4, 1), inserted=nn.BatchNorm2d(4),
                    act=nn.ReLU(), head=nn.Conv2d(4, 2, 1))
    )  # fmt: skip
    planned = plan(net)
    assert planned.converted == ["conv"] and planned.inserted == []
    assert planned.rows[1].norm == "inserted" and planned.rows[1].norm_fix is NormFix.FOUND
    adderize(net)
    assert net.conv.norm is None


@pytest.mark.parametrize(
    ("options", "deviation"),
    [
        ({}, 8), ({"init": "rescale"}, 8), ({"init": "rescale", "scale": 1}, 1),
        ({"init": "normal"}, 1), ({"init": "normal", "scale": 4.0}, 4), ({"init": "keep"}, None),
    ],
)  # fmt: skip
def test_initialisation(options, deviation):
    torch.manual_seed(0)
    model = small_cnn()
    before = model[1][0].weight.detach().clone()
    assert plan(model, **options).options["scale"] == deviation
    adderize(model, **options)
    after = model[1][0].weight.detach()
    if deviation is None:
        assert torch.equal(after, before)
    else:
        assert after.std(correction=0).item() == pytest.approx(deviation, rel=0.1)
    if options.get("init", "rescale") == "rescale":
        torch.testing.assert_close(after, deviation * before / before.std(correction=0))


def test_the_plan_says_how_the_filters_start():
    model = small_cnn()
    assert str(plan(model)).endswith("norms to insert; filters rescaled to deviation 8")
    assert str(plan(model, init="normal")).endswith("; filters drawn with deviation 1")
    assert str(plan(model, init="keep")).endswith("norms to insert")
    assert plan(model, scale=4).to_dict()["options"]["scale"] == 4


def test_rescale_draws_filters_that_have_no_spread():
    model = small_cnn()
    nn.init.constant_(model[1][0].weight, 0.5)
    adderize(model)
    assert model[1][0].weight.std().item() == pytest.approx(8, rel=0.2)


def test_zero_gammas_after_adders_become_one():
    model = torchvision.models.resnet18(zero_init_residual=True)
    assert not model.layer1[0].bn2.weight.any()
    adderize(model)
    assert torch.equal(model.layer1[0].bn2.weight, torch.ones(64))


def test_parameters_keep_their_identity_and_layers_their_state():
    model = small_cnn().to(memory_format=torch.channels_last).eval()
    conv = model[1][0]
    conv.weight.requires_grad_(False)
    seen = []
    handle = conv.register_forward_hook(lambda *_: seen.append(1))
    parameters = dict(model.named_parameters())
    adderize(model)
    for name, parameter in parameters.items():
        assert model.get_parameter(name) is parameter
    assert isinstance(conv, AdderConv2d)
    assert model[1][0] is conv
    assert not conv.weight.requires_grad
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(module.training for module in model.modules())
    model(torch.randn(2, 3, 8, 8))
    assert seen == [1]
    handle.remove()
    model(torch.randn(2, 3, 8, 8))
    assert seen == [1]


def test_a_copy_is_converted_and_the_original_left():
    model = small_cnn()
    before = copy.deepcopy(model.state_dict())
    converted = adderize(model, inplace=False)
    assert not adder_names(model)
    assert adder_names(converted) == ["1.0", "2.0"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_restore_keeps_filters_and_drops_norms():
    model = small_cnn()
    keys = list(model.state_dict())
    adderize(model)
    assert isinstance(model[2][0].norm, nn.BatchNorm2d)
    filters = model[2][0].weight.detach().clone()
    restore(model)
    assert list(model.state_dict()) == keys
    assert type(model[2][0]) is nn.Conv2d
    assert torch.equal(model[2][0].weight, filters)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_restore_of_adders_that_were_built_as_such():
    model = nn.Sequential(AdderConv2d(3, 4, 3, padding=1), nn.Flatten(), AdderLinear(64, 2))
    assert [type(layer) for layer in restore(model)] == [nn.Conv2d, nn.Flatten, nn.Linear]
    assert repr(model) == repr(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2))
    )
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 2)
    assert adder_names(adderize(model, stem=True)) == ["0"]


def test_a_converted_layer_looks_like_one_that_was_built_as_such():
    model = adderize(small_cnn(), norm="ignore")
    assert repr(model[2][0]) == repr(AdderConv2d(8, 8, 1))
    assert vars(model[2][0]).keys() == vars(AdderConv2d(8, 8, 1)).keys()


def test_gradient_option_reaches_the_layers():
    assert adderize(small_cnn(), gradient="sign")[1][0].gradient == "sign"


class Everywhere(nn.Module):
    """A layer under two names, in a dict, and in a plain list that the module system cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.branches = nn.ModuleDict(
            {"again": self.first, "other": nn.ModuleList([conv_bn(4, 4)])}
        )
        self.plain = [self.first]
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.branches["again"](self.first(self.stem(x)).relu()).relu()
        for layer in self.plain:
            y = layer(y)
        return self.head(self.branches["other"][0](y).mean((2, 3)))


def test_shared_layers_stay_shared():
    model = Everywhere()
    rows = {row.name: row for row in plan(model).rows}
    assert rows["first"].reason == "convolution, shared as branches.again"
    adderize(model)
    assert isinstance(model.first, AdderConv2d)
    assert model.branches["again"] is model.first is model.plain[0]
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model.first.weight.grad.abs().sum() > 0


def test_a_shared_layer_is_included_by_any_of_its_names():
    assert plan(Everywhere(), include="branches.again").converted == ["first"]
    assert plan(Everywhere(), exclude="branches.again").converted == ["branches.other.0.0"]


def test_a_root_layer_is_converted_in_place():
    layer = nn.Conv2d(3, 4, 3)
    assert adderize(layer, stem=True, head=True) is layer
    assert isinstance(layer, AdderConv2d)
    assert layer.norm is not None
    assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 4, 3, 3)


def test_meta_then_to_empty():
    with torch.device("meta"):
        model = adderize(small_cnn())
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert model[1][0].weight.std().item() == pytest.approx(1, abs=0.1)
    assert model(torch.randn(4, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("size", [(11, 14), (8, 8), (7, 5)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 1, 1), (3, 3, 2)]
)
def test_same_padding_of_timm(size, kernel, stride, dilation):
    from timm.layers import Conv2dSame

    layer = Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    x = torch.randn(2, 2, *size)
    expected = timm.layers.padding.pad_same(x, layer.kernel_size, layer.stride, layer.dilation)
    patches = nn.functional.unfold(expected, kernel, dilation, stride=stride)
    adderize(layer, stem=True, head=True, norm="ignore", init="keep")
    distances = (patches[:, None] - layer.weight.flatten(1)[None, :, :, None]).abs().sum(2)
    found = layer(x)
    torch.testing.assert_close(found.flatten(2), layer.bias[:, None] - distances)
    assert found.shape[2:] == tuple(-(-side // stride) for side in size)
    assert type(restore(layer)) is Conv2dSame


def test_norms_take_device_dtype_and_mode_of_their_layer():
    model = adderize(small_cnn().double().eval())
    norm = model[2][0].norm
    assert (norm.weight.dtype, norm.training) == (torch.float64, False)
    assert model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_tracing_leaves_no_trace():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last, self.calls = small_cnn(), None, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = x
            return self.net(x)

    model = Remembering().eval()
    seen = []
    model.net[1][0].register_forward_pre_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(model.state_dict())
    plan(model)
    assert (model.last, model.calls, seen) == (None, 0, [])
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model(torch.randn(2, 3, 8, 8))
    assert (model.calls, seen) == (1, [1])


def test_a_converted_model_can_be_copied_and_pickled():
    model = adderize(small_cnn()).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize("inplace", [True, False])
def test_in_inference_mode_models_become_trainable_ones(inplace):
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    with torch.inference_mode():
        model = adderize(original, inplace=inplace)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model[2].weight.grad.norm() > 0 and model[2].norm.weight.grad is not None


def test_a_model_made_in_inference_mode_is_converted_there():
    with torch.inference_mode():
        model = adderize(small_cnn())
        assert adder_names(model) and model(torch.randn(1, 3, 8, 8)).isfinite().all()
