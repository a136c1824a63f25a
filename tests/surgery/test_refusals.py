"""Wrong uses: each has its one clear error, and leaves the model alone."""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import (
    parameters_to_vector,
    parametrizations,
    parametrize,
    prune,
    vector_to_parameters,
)

from adderize import AdderConv2d, AdderizeError, AdderLinear, adderize, plan, restore
from adderize.surgery import Reason
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


def test_a_second_call_warns_once_and_changes_nothing():
    model = adderize(small_cnn())
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="nothing new to convert") as caught:
        assert adderize(model) is model
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_second_call_converts_what_is_left():
    model = adderize(small_cnn(), include="1.*")
    adderize(model, include="2.*")
    assert [row.decision for row in plan(model).rows] == ["keep", "adder", "adder", "keep"]


def test_restore_without_adders():
    with pytest.raises(AdderizeError, match="no adder layers"):
        restore(small_cnn())


def tied_convolutions() -> nn.Sequential:
    model = small_cnn()
    model.insert(2, nn.Conv2d(8, 8, 3, padding=1))
    model[2].weight = model[1][0].weight
    return model


def convolutions_in_one_memory() -> nn.Sequential:
    model = tied_convolutions()
    model[2].weight = nn.Parameter(model[1][0].weight)
    return model


def part_of_another_memory() -> nn.Sequential:
    model = tied_convolutions()
    model[2] = nn.Conv2d(8, 4, 3, padding=1)
    model[2].weight.data = model[1][0].weight.data[2:6]
    model.insert(3, nn.Conv2d(4, 8, 3, padding=1))
    return model


def tied_embedding() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 7))
    model[3].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (tied_convolutions, {"exclude": "2"}, r"1\.0 shares its filters with 2, which stays"),
        (tied_convolutions, {"include": "2"}, r"2 shares its filters with 1\.0, which stays"),
        (tied_embedding, {"linear": True, "head": True}, r"3 shares its filters with 0, which"),
        (convolutions_in_one_memory, {"exclude": "2"}, r"1\.0 shares its filters with 2, which"),
        (convolutions_in_one_memory, {"include": "2"}, r"2 shares its filters with 1\.0, which"),
        (part_of_another_memory, {"exclude": "2"}, r"1\.0 shares its filters with 2, which"),
    ],
)
def test_filters_tied_to_what_stays(build, options, words):
    model = build()
    before = copy.deepcopy(model.state_dict())
    for call in (plan, adderize):
        with pytest.raises(AdderizeError, match=words):
            call(model, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TiedDecoder(nn.Module):
    """A decoder that multiplies by the encoder's weights in one of torch's many ways."""

    def __init__(self, product) -> None:
        super().__init__()
        self.stem, self.encoder = nn.Linear(6, 10), nn.Linear(10, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(10, 6)
        self.product = product

    def forward(self, x):
        codes = self.norm(self.encoder(self.stem(x)))
        return self.head(self.product(codes, self.encoder.weight))


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: F.linear(x, w.t()),
        lambda x, w: x @ w,
        lambda x, w: torch.mm(x, w),
        lambda x, w: torch.bmm(x[None], w[None])[0],
        lambda x, w: torch.baddbmm(x.sum(), x[None], w[None])[0],
        lambda x, w: torch.einsum("bi,ij->bj", x, w),
        lambda x, w: torch.tensordot(x, w, dims=1),
        lambda x, w: torch.inner(x, w.t()),
        lambda x, w: (x[:, :, None] * w).sum(1),
    ],
)
@pytest.mark.parametrize("traceable", [True, False])
def test_filters_that_multiply_elsewhere(product, traceable):
    def forward(x, w):
        return product(x, w) if traceable or len(x) > 0 else x  # torch.fx knows no len

    model = TiedDecoder(forward)
    with pytest.raises(AdderizeError, match="encoder shares its filters with a call of"):
        adderize(model, linear=True)
    assert type(model.encoder) is nn.Linear
    adderize(model, linear=True, exclude="encoder", stem=True)
    assert isinstance(model.stem, AdderLinear)


def test_a_penalty_on_filters_is_no_product():
    def penalised(x, w):
        return x @ torch.ones(4, 10) + (w @ w.t()).square().sum()

    assert isinstance(adderize(TiedDecoder(penalised), linear=True).encoder, AdderLinear)


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


def test_parts_of_one_vector_are_not_tied():
    model = small_cnn()
    vector = parameters_to_vector(model.parameters()).detach()
    vector_to_parameters(vector, model.parameters())
    kept = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("1.")}
    adderize(model, include="1.*")
    assert adder_names(model) == ["1.0"]
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in kept.items())


def test_tied_filters_that_are_converted_together():
    model = adderize(tied_convolutions())
    assert model[2].weight is model[1][0].weight
    assert adder_names(model) == ["1.0", "2", "3.0"]


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


def test_an_optimizer_whose_constructor_failed_does_no_harm():
    broken = torch.optim.SGD.__new__(torch.optim.SGD)
    adderize(small_cnn())
    del broken


class OwnAdder(AdderConv2d):
    pass


def test_restore_of_a_subclass_leaves_the_model_alone():
    model = nn.Sequential(AdderConv2d(3, 4, 3), OwnAdder(4, 4, 3))
    with pytest.raises(AdderizeError, match="1 is a OwnAdder"):
        restore(model)
    assert [type(layer) for layer in model] == [AdderConv2d, OwnAdder]


def test_restore_of_filters_that_are_computed():
    model = nn.Sequential(AdderConv2d(3, 4, 3), AdderConv2d(4, 4, 3))
    parametrizations.weight_norm(model[1])
    with pytest.raises(AdderizeError, match=r"1 computes its filters .*remove_parametrizations"):
        restore(model)
    assert type(model[0]) is AdderConv2d
    parametrize.remove_parametrizations(model[1], "weight")
    assert [type(layer) for layer in restore(model)] == [nn.Conv2d, nn.Conv2d]


def test_an_older_optimizer_is_told_what_it_lacks():
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.Adam(small_cnn().parameters())
    with pytest.warns(
        UserWarning, match=r"SGD .*lacks 2\.0\.norm\.weight, 2\.0\.norm\.bias"
    ) as caught:
        adderize(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model[1][0].weight in set(optimizer.param_groups[0]["params"])
    del other


def test_an_older_optimizer_without_new_parameters_is_fine(recwarn):
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adderize(model, exclude="2.0")
    assert not recwarn.list
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = model[1][0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model[1][0].weight)


def wrapped(layer: nn.Module) -> None:
    layer.forward = functools.partial(layer.forward)


def rewritten(layer: nn.Module) -> None:
    layer.forward = types.MethodType(
        lambda self, x: F.conv2d(x, self.weight, self.bias, self.stride, self.padding), layer
    )


def inner(layer: nn.Module) -> None:
    layer._conv_forward = lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("replace", [wrapped, rewritten, inner])
def test_a_layer_whose_forward_was_replaced_is_kept_and_named(replace):
    model, x = small_cnn().eval(), torch.randn(2, 3, 8, 8)
    replace(model[1][0])
    before = model[:2](x)
    row = next(row for row in plan(model).rows if row.name == "1.0")
    assert row.decision == "keep" and row.why is Reason.OWN_FORWARD
    assert row.reason == "has a forward of its own, put on the instance"
    adderize(model)
    assert adder_names(model) == ["2.0"]
    assert torch.equal(model[:2](x), before)
    with pytest.raises(AdderizeError, match="nothing to convert"):
        adderize(restore(model), include="1.0")


def test_a_forward_that_was_put_on_an_adder_stands_in_the_way_of_restore():
    model = adderize(small_cnn())
    wrapped(model[1][0])
    with pytest.raises(AdderizeError, match=r"1\.0 .*del layer\.forward"):
        restore(model)
    assert adder_names(model) == ["1.0", "2.0"]
    del model[1][0].forward
    restore(model)


def test_a_forward_on_a_block_or_on_the_model_is_what_counts():
    model = small_cnn()
    skipped = model[1]
    skipped.forward = lambda x: x
    assert [row.reason[:12] for row in plan(model).rows][1] == "never called"
    model = small_cnn()
    model.forward = lambda x: model[3:](model[0](x))
    rows = {row.name: row for row in plan(model).rows}
    assert {row.method for row in rows.values()} == {"hooks"}
    assert rows["1.0"].reason.startswith("never called")


class Penalised(nn.Module):
    """A network that keeps its filters in a list too, or hands them to a module of its own."""

    def __init__(self, holder) -> None:
        super().__init__()
        self.net = small_cnn()
        self.holder = holder(self.net[1][0].weight)

    def forward(self, x):
        y = self.net(x)
        return y + self.holder(y) if callable(getattr(self.holder, "penalty", None)) else y


class Penalty(nn.Module):
    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = weight

    def penalty(self):
        return self.weight.square().sum()

    def forward(self, y):
        return self.penalty()


class Twice(Penalty):
    def forward(self, y):
        return F.conv2d(y[:, :, None, None].repeat(1, 2, 3, 3), self.weight).sum()


@pytest.mark.parametrize(
    "holder",
    [
        lambda weight: nn.ParameterList([weight]),
        lambda weight: nn.ParameterDict({"filters": weight}),
        lambda weight: nn.ModuleList([nn.ParameterList([weight])]),
        Penalty,
    ],
    ids=["list", "dict", "nested", "module"],
)
def test_who_only_holds_filters_does_no_harm(holder):
    model = Penalised(holder)
    weight = model.net[1][0].weight
    adderize(model)
    assert adder_names(model) == ["net.1.0", "net.2.0"]
    assert next(model.holder.parameters()) is weight is model.net[1][0].weight
    model(torch.randn(2, 3, 8, 8)).sum().backward()


def test_parameters_that_a_user_put_on_a_layer_are_no_filters():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_cnn()
            self.net[1][0].scale = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))

        def forward(self, x):
            block = self.net[1]
            y = block[0](self.net[0](x)) * block[0].scale
            return self.net[3:](self.net[2](block[1:](y)))

    model = adderize(Scaled())
    assert adder_names(model) == ["net.1.0", "net.2.0"]
    assert bool((model.net[1][0].scale == 2).all())


@pytest.mark.parametrize("direct", [False, True], ids=["holder", "layer's own"])
def test_who_computes_a_convolution_with_filters_is_named(direct):
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_cnn()

        def forward(self, x):
            conv = self.net[1][0]
            return self.net(x), F.conv2d(conv(self.net[0](x)), conv.weight)

    model = Reading() if direct else Penalised(Twice)
    with pytest.raises(AdderizeError, match=r"net\.1\.0 shares its filters with .*conv2d"):
        adderize(model)
    assert adder_names(adderize(model, exclude="net.1.0")) == ["net.2.0"]


def test_a_network_over_one_dimension_is_told_how_to_be_written() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3))
    with pytest.raises(AdderizeError, match=r"nothing to convert.*Conv2d over images of height 1"):
        adderize(model, stem=True, head=True)
