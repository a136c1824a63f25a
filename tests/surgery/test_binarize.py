"""binarize(): which layers, the norm before them, learning, counting, saving, and back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from adderize import (
    AdderConv2d,
    AdderizeError,
    BinaryConv2d,
    adderize,
    binarize,
    count,
    load_model,
    plan,
    restore,
    save_model,
)
from adderize.counting import FlopCountAnalysis


def binaries(model: nn.Module) -> dict[str, BinaryConv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, BinaryConv2d)}


class Small(nn.Module):
    """Stem, two convolutions in the usual order around a shortcut, and a linear head."""

    input_size = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(y)) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_the_layers_that_adderize_takes() -> None:
    model = resnet18()
    chosen = plan(model).converted
    weights = {name: model.get_submodule(name).weight for name in chosen}
    before = model.state_dict().keys()
    converted = binarize(model)
    assert converted is model
    assert list(binaries(model)) == chosen and len(chosen) == 19
    for name, layer in binaries(model).items():
        assert layer.weight is weights[name]
        assert isinstance(layer.norm, nn.BatchNorm2d)
        assert layer.norm.num_features == layer.in_channels
    assert {key for key in model.state_dict() if ".norm." not in key} == before
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


def test_a_plan_says_what_happens() -> None:
    model = Small()
    planned = plan(model, target="binary", exclude="conv2")
    assert planned.converted == planned.inserted == ["conv1"]
    assert planned.options["target"] == "binary"
    assert not binaries(model)
    binarize(model, exclude="conv2")
    rows = {row.name: row for row in plan(model, target="binary").rows}
    assert rows["conv1"].decision == "binary" and rows["conv1"].reason == "is binary"
    assert rows["conv1"].norm == "conv1.norm" and rows["conv2"].norm == "inserted"
    assert str(plan(model, target="binary")).endswith("1 already binary; 1 norms to insert")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "ternary"}, "target is 'ternary'; expected one of 'adder', 'binary'"),
        ({"target": "binary", "linear": True}, "linear is True, but binary layers have no such"),
        ({"target": "binary", "init": "keep"}, "init is 'keep', but binary layers have no such"),
        ({"target": "binary", "scale": 8.0}, "scale is 8.0, but binary layers have no such"),
        ({"target": "binary", "gradient": "sign"}, "gradient is 'sign', but binary layers"),
    ],
)
def test_plans_that_no_binary_network_has(options: dict, words: str) -> None:
    with pytest.raises(AdderizeError, match=words):
        plan(Small(), **options)


def test_patterns_and_options() -> None:
    assert list(binaries(binarize(Small(), include="conv*", exclude="conv2"))) == ["conv1"]
    assert list(binaries(binarize(Small(), stem=True))) == ["stem", "conv1", "conv2"]
    original = Small()
    twin = binarize(original, inplace=False)
    assert not binaries(original) and len(binaries(twin)) == 2
    depthwise = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    assert list(binaries(binarize(copy.deepcopy(depthwise), depthwise=False))) == ["4"]
    assert list(binaries(binarize(depthwise, head=True))) == ["2", "4", "6"]


def test_own_norms_follow_device_dtype_and_mode() -> None:
    with torch.device("meta"):
        model = Small().double().eval()
    norm = binarize(model).conv1.norm
    assert norm.weight.device.type == "meta" and norm.weight.dtype == torch.float64
    assert not norm.training


@pytest.mark.parametrize(
    ("between", "inserted"),
    [
        ([], False),
        ([nn.Dropout(0.1), nn.AvgPool2d(2), nn.Identity()], False),
        ([nn.ReLU()], True),
        ([nn.MaxPool2d(2)], True),
        ([nn.Hardtanh()], True),
    ],
    ids=["norm", "passing", "relu", "max-pool", "hardtanh"],
)
def test_a_norm_right_before_is_found(between: list[nn.Module], inserted: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *between, nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.LazyLinear(2),
    )  # fmt: skip
    model(torch.zeros(2, 3, 16, 16))
    (layer,) = binaries(binarize(model)).values()
    assert (layer.norm is not None) == inserted


def test_a_frozen_norm_does_not_count_and_a_zero_gamma_is_reset() -> None:
    for frozen in (True, False):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        )
        model[1].requires_grad_(not frozen)
        nn.init.zeros_(model[1].weight)
        layer = binarize(model)[2]
        assert (layer.norm is not None) == frozen
        assert bool((model[1].weight == (0 if frozen else 1)).all())


def test_norms_required_or_ignored() -> None:
    with pytest.raises(AdderizeError, match="no trainable norm comes right before conv1, conv2"):
        binarize(Small(), norm="require")
    assert all(layer.norm is None for layer in binaries(binarize(Small(), norm="ignore")).values())


def _trained(model: nn.Module) -> tuple[float, float]:
    """First and last loss on images whose class is the sign of their horizontal gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    labels = torch.arange(64) % 2
    images += (2.0 * labels - 1).view(-1, 1, 1, 1) * torch.linspace(-1, 1, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(("norm", "learns"), [("insert", True), ("ignore", False)])
def test_a_network_learns_through_binary_layers_behind_norms(norm: str, learns: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    model[0].requires_grad_(False)
    assert len(binaries(binarize(model, norm=norm))) == 2
    first, last = _trained(model)
    assert (last < 0.1 * first) == learns


def test_without_a_norm_all_images_look_alike_behind_a_relu() -> None:
    images = torch.rand(4, 3, 8, 8)
    outputs = {}
    for norm in ("ignore", "insert"):
        torch.manual_seed(0)
        model = binarize(Small(), norm=norm)
        outputs[norm] = model.conv1(F.relu(model.bn(model.stem(images)))).detach().var(0)
    assert float(outputs["ignore"].max()) < 1e-10
    assert float(outputs["insert"].mean()) > 0.01


def test_saving_and_loading(tmp_path: Path) -> None:
    model = binarize(Small(), exclude="conv2")
    _trained(model)
    save_model(model, tmp_path)
    loaded = load_model(Small(), tmp_path)
    assert list(binaries(loaded)) == ["conv1"]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    with pytest.raises(AdderizeError, match="kind, gradient or norm"):
        load_model(adderize(Small(), include="conv1"), tmp_path)
    fresh = Small()
    fresh.bn1 = nn.BatchNorm2d(9)
    with pytest.raises(AdderizeError, match="bn1"):
        load_model(fresh, tmp_path)
    assert not binaries(fresh)


def test_restore() -> None:
    model = Small().eval()
    images = torch.randn(2, 3, 8, 8)
    keys, weight, output = list(model.state_dict()), model.conv1.weight, model(images)
    assert not torch.allclose(binarize(model)(images), output)
    restore(model)
    assert type(model.conv1) is nn.Conv2d and model.conv1.weight is weight
    assert list(model.state_dict()) == keys
    assert not hasattr(model.conv1, "norm")
    assert torch.equal(model(images), output)


def test_operations_by_hand() -> None:
    budget = count(binarize(Small()))
    layers = {layer.name: layer for layer in budget.layers}
    pairs, outputs = 8 * 8 * 8 * 8 * 9, 8 * 8 * 8
    conv1 = layers["conv1"]
    assert conv1.kind == "binary"
    assert conv1.before.multiplications == conv1.before.additions == pairs
    after = conv1.after
    assert (after.xnors, after.additions, after.multiplications) == (pairs, pairs, outputs)
    assert after.comparisons == outputs  # the signs of its input, which is as large
    assert layers["conv1.norm"].before.flops == 0
    assert layers["conv1.norm"].after.multiplications == outputs
    assert budget.after.xnors == 2 * pairs and budget.before.xnors == 0
    assert budget.before == count(Small()).before
    assert not budget.uncounted
    assert "xnor after" in str(budget) and "xnor after" in budget.to_markdown()
    assert "xnor" not in str(count(Small()))


def test_fvcore_counts_the_same() -> None:
    model = binarize(Small()).eval()
    counted = count(model).after
    assert FlopCountAnalysis(model, torch.zeros(1, 3, 8, 8)).operations() == counted


def test_existing_layers() -> None:
    model = binarize(Small(), include="conv1")
    binarize(model)
    assert list(binaries(model)) == ["conv1", "conv2"]
    with pytest.warns(UserWarning, match="nothing new to convert"):
        binarize(model)
    mixed = binarize(adderize(Small(), include="conv1"))
    assert isinstance(mixed.conv1, AdderConv2d) and isinstance(mixed.conv2, BinaryConv2d)
    rows = {row.name: row for row in plan(mixed, norm="ignore").rows}
    assert rows["conv1"].decision == "adder" and rows["conv2"].decision == "keep"


def test_an_optimizer_made_before_lacks_the_norms() -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match=r"conv1\.norm\.weight"):
        binarize(model)
    assert optimizer.param_groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "layer9.*"}, "matches no layer"),
        ({"norm": "before"}, "norm is 'before'"),
        ({"depthwise": 1}, "depthwise is 1"),
        ({"inplace": "no"}, "inplace is 'no'"),
        ({"exclude": "conv*"}, "nothing to convert"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        binarize(Small(), **options)


def test_refused_models() -> None:
    with pytest.raises(AdderizeError, match="autocast"):
        binarize(Small().half())
    with pytest.raises(AdderizeError, match="compiled"):
        binarize(torch.compile(Small()))
    with pytest.raises(AdderizeError, match="no adder layers in the model, and no binary ones"):
        restore(Small())
