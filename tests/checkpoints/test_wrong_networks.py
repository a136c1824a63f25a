"""Networks whose state dicts fit the saved one's, and that compute something else: refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.linear import Linear
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, resnet50

from adderize import AdderizeError, adderize, load_model, save_model
from adderize.checkpoints.named import start_from
from adderize.quantize import quantize
from tests.surgery.test_adderize import adder_names


def network(
    *,
    stride: Any = 2,
    padding: Any = 1,
    eps: float = 1e-5,
    act: Callable[[], nn.Module] = nn.ReLU,
    pool: Any = 2,
    mode: str = "zeros",
    ceil: bool = False,
    mean: Callable[[int], nn.Module] = nn.AdaptiveAvgPool2d,
    norm: Callable[..., nn.Module] = nn.BatchNorm2d,
    **harmless: Any,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=eps, momentum=harmless.get("momentum", 0.1)),
        act(),
        nn.Conv2d(4, 4, 3, stride, padding, padding_mode=mode, bias=False),
        norm(4),
        harmless.get("last", nn.ReLU)(),
        nn.MaxPool2d(pool, ceil_mode=ceil),
        nn.Dropout(harmless.get("p", 0.5)),
        mean(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "stride": ({"stride": 1}, "3 has stride 1 instead of 2"),
    "stride of one side": ({"stride": (2, 1)}, r"3 has stride \[2, 1\] instead of 2"),
    "padding": ({"padding": 0}, "3 has padding 0 instead of 1"),
    "padding mode": ({"mode": "reflect"}, "3 has padding_mode reflect instead of zeros"),
    "eps": ({"eps": 1e-3}, "1 has eps 0.001 instead of 1e-05"),
    "activation": ({"act": nn.Hardswish}, "2 has kind Hardswish instead of ReLU"),
    "no activation": ({"act": nn.Identity}, "2 has kind None instead of ReLU"),
    "pooling": ({"pool": 3}, "6 has kernel_size 3 instead of 2"),
    "other pooling": (
        {"mean": nn.AdaptiveMaxPool2d},
        "8 has layer AdaptiveMaxPool2d instead of AdaptiveAvgPool2d",
    ),
    "no pooling": ({"mean": nn.Identity}, "8 has layer None instead of AdaptiveAvgPool2d"),
    "other norm": ({"norm": instance_norm}, "4 has layer InstanceNorm2d instead of BatchNorm"),
    "rounding of sizes": ({"ceil": True}, "6 has ceil_mode True instead of False"),
}


@pytest.mark.parametrize("form", ["cnn", "adder", "quantized"])
@pytest.mark.parametrize("case", OTHER)
def test_a_network_that_computes_otherwise(case: str, form: str, tmp_path: Path) -> None:
    saved: nn.Module = network()
    if form != "cnn":
        saved = adderize(saved)
        saved(torch.randn(4, 3, 16, 16))
    if form == "quantized":
        saved = quantize(saved.eval(), [torch.randn(4, 3, 16, 16)])
    save_model(saved, tmp_path)
    options, message = OTHER[case]
    other = network(**options)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(AdderizeError, match=message):
        load_model(other, tmp_path)
    assert not adder_names(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 2), "padding": [1, 1], "pool": (2, 2)},
        {"momentum": 0.01, "p": 0.1},
        {"last": lambda: nn.ReLU(inplace=True)},
        {"norm": nn.SyncBatchNorm},
    ],
    ids=lambda options: ", ".join(options),
)
def test_what_makes_no_difference(options: dict[str, Any], tmp_path: Path) -> None:
    saved = adderize(network())
    saved(torch.randn(4, 3, 16, 16))
    save_model(saved.eval(), tmp_path)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_model(network(**options), tmp_path).eval()(x), saved(x))


def test_resnet50_with_the_strides_of_the_paper(tmp_path: Path) -> None:
    save_model(resnet50(), tmp_path)
    first_version = resnet50()
    for block in first_version.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    with pytest.raises(AdderizeError, match=r"layer2\.0\.conv1 has stride 2 instead of 1"):
        load_model(first_version, tmp_path)


def test_folders_of_earlier_versions_do_not_tell(tmp_path: Path) -> None:
    save_model(network(), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    for key in ("settings", "versions", "values", "weights"):
        del manifest[key]
    (tmp_path / "adderize.json").write_text(json.dumps(manifest))
    load_model(network(eps=1e-3), tmp_path)


def test_folders_whose_layers_have_no_names(tmp_path: Path) -> None:
    save_model(network(), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    named = [own.pop("layer", None) for own in manifest["settings"].values()]
    assert named.count("BatchNorm") == 2
    (tmp_path / "adderize.json").write_text(json.dumps(manifest))
    load_model(network(), tmp_path)


class Halved(nn.Module):
    """Version 2 keeps half of what version 1 kept."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 * self.scale

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[prefix + "scale"] = state[prefix + "scale"] / 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_refused_network_keeps_its_own_classes(tmp_path: Path) -> None:
    def small(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 4), Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, width))

    save_model(adderize(small(2), linear=True), tmp_path)
    other = small(3)
    with pytest.raises(AdderizeError, match=r"3\.weight has the shape"):
        load_model(other, tmp_path)
    assert [type(layer) for layer in other] == [nn.Linear, Linear, nn.BatchNorm1d, nn.Linear]


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_the_versions_of_modules_are_kept(prefix: str, tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Conv2d(3, 3, 1), Halved())
    save_model(saved, tmp_path / "folder")
    assert (
        load_model(nn.Sequential(nn.Conv2d(3, 3, 1), Halved()), tmp_path / "folder")[1].scale == 1
    )
    outer: nn.Module = saved
    for part in reversed(prefix.split(".")[:-1]):
        whole = nn.Module()
        whole.add_module(part, outer)
        outer = whole
    torch.save(outer.state_dict(), tmp_path / "a.pth")
    fresh = nn.Sequential(nn.Conv2d(3, 3, 1), Halved())
    assert start_from(fresh, "-", str(tmp_path / "a.pth"))[1].scale == 1
