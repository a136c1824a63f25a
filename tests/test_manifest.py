"""Saving and loading: the right weights in the right layers, or an error."""

from __future__ import annotations

import json

import pytest
import torch
from test_surgery import LeNet, adder_names, small_cnn
from torch import nn

from adderize import (
    AdderConv2d,
    AdderizeError,
    adderize,
    load_authors_checkpoint,
    load_model,
    save_model,
)


def trained(model: nn.Module, size: tuple[int, ...] = (4, 3, 8, 8)) -> nn.Module:
    model(torch.randn(size))
    return model.eval()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_fresh_model_becomes_the_saved_one(tmp_path, device):
    saved = trained(adderize(small_cnn(), gradient="sign"))
    save_model(saved, tmp_path)
    with torch.device(device):
        fresh = small_cnn()
    loaded = load_model(fresh, tmp_path).eval()
    assert adder_names(loaded) == adder_names(saved)
    assert loaded[1][0].gradient == "sign"
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


def test_weights_load_into_a_model_converted_in_the_same_way(tmp_path):
    saved = trained(adderize(small_cnn()))
    save_model(saved, tmp_path)
    loaded = load_model(adderize(small_cnn()), tmp_path).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


def test_the_manifest_says_what_was_converted(tmp_path):
    save_model(adderize(small_cnn(), init="normal"), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    assert manifest["layers"]["2.0"] == {"kind": "AdderConv2d", "gradient": "full", "norm": True}
    assert manifest["options"][""]["init"] == "normal"
    assert "torch" in manifest["libraries"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.first.weight
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(self.stem(x)).relu()).relu()))


def test_shared_layers_and_tied_filters_stay_tied(tmp_path):
    saved = trained(adderize(Tied()))
    save_model(saved, tmp_path)
    loaded = load_model(Tied(), tmp_path).eval()
    assert loaded.first is loaded.second
    assert loaded.third.weight is loaded.first.weight
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), saved(x))


def test_convolution_weights_do_not_go_into_adders(tmp_path):
    save_model(small_cnn(), tmp_path)
    with pytest.raises(AdderizeError, match=r"1\.0"):
        load_model(adderize(small_cnn()), tmp_path)


def test_a_model_without_the_layers_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    with pytest.raises(AdderizeError, match=r"1\.0"):
        load_model(LeNet(), tmp_path)


def test_another_shape_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    other = small_cnn()
    other[5] = nn.Linear(8, 5)
    with pytest.raises(AdderizeError, match=r"do not belong.* 5\.weight"):
        load_model(other, tmp_path)


def test_another_conversion_is_refused(tmp_path):
    save_model(adderize(small_cnn()), tmp_path)
    with pytest.raises(AdderizeError, match=r"2\.0"):
        load_model(adderize(small_cnn(), norm="ignore"), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "json", "weights", "format"])
def test_unusable_folders(tmp_path, damage):
    save_model(adderize(small_cnn()), tmp_path)
    if damage == "missing":
        (tmp_path / "adderize.json").unlink()
    elif damage == "json":
        (tmp_path / "adderize.json").write_text("{")
    elif damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"1234567890")
    else:
        (tmp_path / "adderize.json").write_text('{"format": 99}')
    with pytest.raises(AdderizeError, match=str(tmp_path)):
        load_model(small_cnn(), tmp_path)


def test_a_model_without_values_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = small_cnn()
    with pytest.raises(AdderizeError, match="meta"):
        save_model(model, tmp_path)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, adders: bool) -> None:
        super().__init__()
        conv = AdderConv2d if adders else nn.Conv2d
        self.conv1 = conv(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        if stride != 1:
            self.downsample = nn.Sequential(
                conv(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )


class AuthorsResNet20(nn.Module):
    """The parameters of the authors' network; their names, not their computation."""

    def __init__(self, adders: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1, adders) for _ in range(3)))
        self.layer2 = nn.Sequential(
            Block(16, 32, 2, adders), Block(32, 32, 1, adders), Block(32, 32, 1, adders)
        )
        self.layer3 = nn.Sequential(
            Block(32, 64, 2, adders), Block(64, 64, 1, adders), Block(64, 64, 1, adders)
        )
        self.fc, self.bn2 = nn.Conv2d(64, 10, 1, bias=False), nn.BatchNorm2d(10)


def as_the_authors_write(model: nn.Module) -> dict[str, torch.Tensor]:
    adders = set(adder_names(model))
    return {
        "module." + (key.removesuffix("weight") + "adder" if key[:-7] in adders else key): value
        for key, value in model.state_dict().items()
    }


def test_authors_checkpoint(tmp_path):
    source = AuthorsResNet20()
    torch.save(as_the_authors_write(source), tmp_path / "a.pth")
    model = load_authors_checkpoint(AuthorsResNet20(), tmp_path / "a.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_authors_checkpoint_in_the_wrong_kind_of_layer(tmp_path):
    torch.save(as_the_authors_write(AuthorsResNet20()), tmp_path / "adders.pth")
    torch.save(as_the_authors_write(AuthorsResNet20(adders=False)), tmp_path / "cnn.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(AuthorsResNet20(adders=False), tmp_path / "adders.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(AuthorsResNet20(), tmp_path / "cnn.pth")


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(AdderizeError, match="no file"):
        load_authors_checkpoint(AuthorsResNet20(), tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(AdderizeError, match="no PyTorch checkpoint"):
        load_authors_checkpoint(AuthorsResNet20(), tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AdderizeError, match="state dict"):
        load_authors_checkpoint(AuthorsResNet20(), tmp_path / "list.pth")


@pytest.mark.shared
def test_the_authors_own_file(models_folder):
    path = models_folder / "resnet20-addernet-cifar10.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = load_authors_checkpoint(AuthorsResNet20(), path)
    for key in ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.2.conv2"):
        assert torch.equal(model.get_submodule(key).weight, stored[f"module.{key}.adder"])
    assert torch.equal(model.bn2.running_var, stored["module.bn2.running_var"])
