"""Networks from every kind of file, with the adders that they were saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, adderize, save_model
from adderize.checkpoints.named import load
from adderize.models import lenet5_bn
from recipes.image_classifier import ImageClassifier

ARCH = "adderize.models:lenet5_bn"
ALL: dict[str, Any] = {"stem": True, "head": True, "linear": True}


def trained(**options: Any) -> nn.Module:
    """Every parameter and statistic is one that no constructor gives."""
    model = adderize(lenet5_bn(), **options) if options else lenet5_bn()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape) + 0.5
    return model


def adders(model: nn.Module) -> list[str]:
    kinds = AdderConv2d | AdderLinear
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and adders(found) == adders(expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_model(tmp_path: Path) -> None:
    model = trained(**ALL)
    save_model(model, tmp_path / "model")
    loaded = load(str(tmp_path / "model"), ARCH)
    assert_same(loaded.model, model)
    assert loaded.arch == ARCH and not loaded.note
    with pytest.raises(AdderizeError, match="--arch"):
        load(str(tmp_path / "model"))


def test_a_checkpoint_of_lightning_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for conversion in (ALL, {"include": "conv2"}, None):
        module = ImageClassifier(ARCH, 7, conversion=conversion)
        torch.save(
            {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path
        )
        loaded = load(str(path))
        assert_same(loaded.model, module.model)
        assert loaded.model.fc3.weight.shape[0] == 7 and not loaded.note


def test_the_authors_keys_say_which_layers_are_adders(tmp_path: Path) -> None:
    model = trained(include="conv2")
    path = tmp_path / "authors.pth"
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    state["module.conv2.adder"] = state.pop("module.conv2.weight")
    torch.save(state, path)
    assert_same(load(str(path), ARCH).model, model)
    state["module.conv9.adder"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(AdderizeError, match=r"conv9\.adder"):
        load(str(path), ARCH)


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
def test_plain_state_dicts_need_to_be_told(tmp_path: Path, prefix: str) -> None:
    model = trained(**ALL)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    if prefix:
        state["loss.weight"] = torch.zeros(10)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    loaded = load(str(path), ARCH, **ALL)
    assert_same(loaded.model, model)
    assert "5 were taken as such" in loaded.note
    with pytest.raises(AdderizeError, match=r"the model lacks .*fc1\.norm"):
        load(str(path), ARCH)


def test_convolutions_and_safetensors(tmp_path: Path) -> None:
    model = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load(str(tmp_path / "model.safetensors"), ARCH, exclude="*")
    assert_same(loaded.model, model)
    assert "0 were taken" in loaded.note


def test_an_architecture_is_converted_as_planned() -> None:
    assert adders(load(ARCH).model) == ["conv2"]
    assert len(adders(load(ARCH, **ALL).model)) == 5
    assert adders(load(ARCH, exclude="*").model) == []


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def error(content: Any, arch: str | None = ARCH) -> str:
        torch.save(content, path)
        with pytest.raises(AdderizeError) as caught:
            load(str(path), arch)
        return str(caught.value)

    assert "holds a Tensor" in error(torch.zeros(1))
    assert "no state dict" in error({"state_dict": {"a": 1}})
    assert "no state dict" in error({})
    assert "--arch" in error(lenet5_bn().state_dict(), None)
    assert "do not belong" in error(lenet5_bn().state_dict(), "adderize.models:resnet20")
    state: dict[str, Tensor] = {"a": torch.zeros(1)}
    assert "lack conv1.weight" in error(state)
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(AdderizeError, match=r"x\."):
            load(str(tmp_path / name), ARCH)
    with pytest.raises(AdderizeError, match="does not exist"):
        load(str(tmp_path / "nowhere.pth"))
    with pytest.raises(AdderizeError, match="does not exist; expected a checkpoint"):
        load("resnet18", ARCH)
