"""Checkpoints of the AdderNet authors' code: the right weights in the right layers, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import AdderizeError, adderize, load_authors_checkpoint
from adderize.models import resnet20
from tests.surgery.test_adderize import adder_names


def authors_network(adders: bool = True) -> nn.Module:
    model = resnet20()
    return adderize(model, init="normal") if adders else model


def as_the_authors_write(model: nn.Module) -> dict[str, torch.Tensor]:
    adders = set(adder_names(model))
    return {
        "module." + (key.removesuffix("weight") + "adder" if key[:-7] in adders else key): value
        for key, value in model.state_dict().items()
    }


def test_authors_checkpoint(tmp_path):
    source = authors_network()
    torch.save(as_the_authors_write(source), tmp_path / "a.pth")
    model = load_authors_checkpoint(authors_network(), tmp_path / "a.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_authors_checkpoint_in_the_wrong_kind_of_layer(tmp_path):
    torch.save(as_the_authors_write(authors_network()), tmp_path / "adders.pth")
    torch.save(as_the_authors_write(authors_network(adders=False)), tmp_path / "cnn.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(authors_network(adders=False), tmp_path / "adders.pth")
    with pytest.raises(AdderizeError, match=r"layer1\.0\.conv1"):
        load_authors_checkpoint(authors_network(), tmp_path / "cnn.pth")


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(AdderizeError, match="no file"):
        load_authors_checkpoint(authors_network(), tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(AdderizeError, match="not a PyTorch checkpoint"):
        load_authors_checkpoint(authors_network(), tmp_path / "text.pth")
    torch.save(authors_network(), tmp_path / "module.pth")
    with pytest.raises(AdderizeError, match=r"torch\.save\(model\.state_dict\(\)"):
        load_authors_checkpoint(authors_network(), tmp_path / "module.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "number.pth")
    with pytest.raises(AdderizeError, match="state dict"):
        load_authors_checkpoint(authors_network(), tmp_path / "number.pth")
    torch.save(authors_network().state_dict(), tmp_path / "half.pth")
    whole = (tmp_path / "half.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdderizeError, match=r"half\.pth (cannot be read|is not a)"):
        load_authors_checkpoint(authors_network(), tmp_path / "half.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AdderizeError, match="state dict"):
        load_authors_checkpoint(authors_network(), tmp_path / "list.pth")


@pytest.mark.shared
def test_the_authors_own_file(models_folder):
    path = models_folder / "resnet20-addernet-cifar10.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = load_authors_checkpoint(authors_network(), path)
    for key in ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.2.conv2"):
        assert torch.equal(model.get_submodule(key).weight, stored[f"module.{key}.adder"])
    assert torch.equal(model.bn2.running_var, stored["module.bn2.running_var"])
