"""Stem, head, gates and kept layers, by data flow."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from adderize import AdderizeError, adderize, plan


def names_with(model: nn.Module, reason: str, **options: object) -> list[str]:
    return [row.name for row in plan(model, **options).rows if row.reason.startswith(reason)]


def on_meta(build: Callable[..., nn.Module], **arguments: object) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(**arguments)
    except RuntimeError:  # older releases of timm compute with values
        return build(**arguments).to("meta")


ENDS = {
    "fcn": (
        lambda: on_meta(segmentation.fcn_resnet50, weights_backbone=None, aux_loss=True),
        ["backbone.conv1"],
        ["classifier.4", "aux_classifier.4"],
    ),
    "deeplab": (
        lambda: on_meta(segmentation.deeplabv3_resnet50, weights_backbone=None),
        ["backbone.conv1"],
        ["classifier.4"],
    ),
    "fcos": (
        lambda: detection.fcos_resnet50_fpn(weights=None, weights_backbone=None),
        ["backbone.body.conv1"],
        ["head.classification_head.cls_logits"]
        + [f"head.regression_head.bbox_{name}" for name in ("reg", "ctrness")],
    ),
    "mask-rcnn": (
        lambda: detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None),
        ["backbone.body.conv1"],
        ["rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"],
    ),
    "crossvit": (
        lambda: on_meta(timm.create_model, model_name="crossvit_9_240"),
        ["patch_embed.0.proj", "patch_embed.1.proj"],
        [],
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_ends_of_a_network(case):
    build, stem, head = ENDS[case]
    model = build()
    assert names_with(model, "stem") == stem
    assert names_with(model, "head") == head


def test_auxiliary_classifiers_are_heads():
    model = torchvision.models.googlenet(init_weights=False).eval()
    assert names_with(model, "head", linear=True) == ["aux1.fc2", "aux2.fc2", "fc"]
    assert not any(module.training for module in model.modules())


class Residual(nn.Module):
    """The input and a refinement of it, as in super-resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.body, self.leave = (
            nn.Conv2d(*pair, 3, padding=1) for pair in ((1, 4), (4, 4), (5, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.enter(x).relu()).relu()
        return torch.sigmoid(x + self.leave(torch.cat([x, y], 1)))


def test_a_skip_from_the_input_makes_no_stem():
    rows = {row.name: row.reason for row in plan(Residual()).rows}
    assert rows["enter"].startswith("stem")
    assert rows["leave"].startswith("head")
    assert rows["body"] == "convolution"


def test_a_skip_to_the_output_makes_no_head_of_inner_layers():
    with torch.device("meta"):
        model = timm.create_model("resnet18", num_classes=0)
    assert names_with(model, "head") == ["layer4.1.conv2"]


def test_gates_are_kept_unless_asked_for():
    model = on_meta(timm.create_model, model_name="seresnet18")
    gates = names_with(model, "gate")
    assert gates == [
        f"layer{stage}.{block}.se.fc{layer}"
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for layer in (1, 2)
    ]
    assert not names_with(model, "gate", gates=True)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "skresnet18", "resnest14d", "ghostnet_050"]
)
def test_gates_of_other_families(name):
    rows = {row.name: row.reason for row in plan(on_meta(timm.create_model, model_name=name)).rows}
    gates = {row for row in rows if ".se." in row or ".attn." in row or "attn.fc" in row}
    gates |= {row for row in rows if ".conv2.fc" in row}
    assert gates
    assert {row for row, reason in rows.items() if reason.startswith("gate")} == gates


def test_a_pooled_branch_that_multiplies_nothing_is_no_gate():
    model = on_meta(segmentation.deeplabv3_resnet50, weights_backbone=None)
    rows = {row.name: row for row in plan(model).rows}
    assert rows["classifier.0.convs.4.1"].decision == "convert"
    head = {
        row.name: row
        for row in plan(on_meta(timm.create_model, model_name="mobilenetv3_small_050")).rows
    }["conv_head"]
    assert (head.decision, head.norm) == ("convert", "inserted")


def test_depthwise_option():
    model = on_meta(torchvision.models.mobilenet_v2)
    assert len(names_with(model, "depthwise", depthwise=False)) == 17
    assert not names_with(model, "depthwise")


def test_layers_that_are_not_called_are_kept():
    model = on_meta(timm.create_model, model_name="beit_base_patch16_224")
    rows = {row.name: row.reason for row in plan(model, linear=True).rows}
    assert rows["blocks.0.attn.qkv"].startswith("never called")
    assert rows["blocks.0.mlp.fc1"] == "linear layer"


def test_the_transformer_fast_path_is_kept():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    rows = plan(model, linear=True, example_input=torch.empty(2, 3, 4))
    assert rows.converted == ["2"]


def test_subclasses_are_kept_and_named():
    rows = plan(on_meta(timm.create_model, model_name="resnetv2_50x1_bit")).rows
    kept = {row.reason for row in rows if row.kind == "StdConv2d"}
    assert kept == {"StdConv2d is a subclass, which may compute otherwise", "stem: reads the input"}


class Boxed:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_results_in_an_unknown_wrapping():
    model = Residual()
    forward = model.forward
    model.forward = lambda x: Boxed(forward(x))
    assert plan(model).converted == ["body"]


def test_results_that_only_hooks_collect():
    with torch.device("meta"):
        model = timm.create_model("resnet18", features_only=True, feature_cls="hook")
    rows = plan(model)
    assert len(rows.converted) == 18
    assert {row.method for row in rows.rows} == {"fx"}


class Opaque(nn.Module):
    """Neither torch.fx nor a forward on guessed inputs understands it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.c, self.act, self.d = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, request: dict[str, Tensor]) -> Tensor:
        if min(request["image"].shape) < 1:
            raise ValueError("an empty image")
        y = self.norm(self.b(self.a(request["image"])))
        return self.d(self.act(self.c(y)).mean((2, 3)))


def test_registration_order_is_the_last_resort():
    rows = {row.name: row for row in plan(Opaque(), linear=True).rows}
    assert {row.method for row in rows.values()} == {"order"}
    assert rows["a"].reason.startswith("stem")
    assert rows["d"].reason.startswith("head")
    assert (rows["b"].norm, rows["c"].norm) == ("norm", "inserted")


def test_adders_tell_what_a_model_takes_as_convolutions_do():
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[: len(x)])  # torch.fx knows no len

    model = adderize(Images(), stem=True, head=True)
    rows = plan(model).rows
    assert [(row.decision, row.norm, row.method) for row in rows] == [
        ("adder", "net.0.norm", "hooks"),
        ("adder", "net.2.norm", "hooks"),
    ]


def test_a_conversion_by_registration_order_warns_once():
    with pytest.warns(UserWarning, match="could not be traced") as caught:
        adderize(Opaque(), linear=True)
    assert len(caught) == 1
    assert "a (stem: reads the input), d (head: produces the output) kept" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.empty(2, 1, 12, 12), r"IndexError|TypeError|RuntimeError"),
        (({"picture": torch.empty(2, 1, 12, 12)},), r"KeyError: 'image'"),
        (({"image": torch.empty(2, 3, 12, 12)},), r"RuntimeError: .*channel"),
    ],
)
def test_an_example_input_that_the_model_cannot_take(example, words):
    for call in (plan, adderize):
        with pytest.raises(AdderizeError, match=words) as caught:
            call(Opaque(), example_input=example)
        assert caught.value.__cause__ is not None


class Noisy(nn.Module):
    """Makes tensors and draws random numbers in its forward, and branches on a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 0 and random.random() >= 0:
            x = x + torch.rand(x.shape) + torch.ones(1, 1, *x.shape[2:])
        return self.head(self.norm(self.b(self.a(x))))


def test_a_forward_that_makes_tensors_is_recorded_and_draws_nothing(recwarn):
    model = Noisy()
    states = random.getstate(), torch.get_rng_state()
    rows = {row.name: row for row in plan(model).rows}
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert {row.method for row in rows.values()} == {"hooks"}
    assert rows["b"].norm == "norm"
    adderize(model)
    assert not recwarn.list


def test_an_example_input_helps():
    example = ({"image": torch.empty(2, 1, 12, 12)},)
    rows = {row.name: row for row in plan(Opaque(), example_input=example).rows}
    assert {row.method for row in rows.values()} == {"hooks"}
    assert rows["b"].norm == "norm"
