"""Networks on the Hugging Face Hub, with a local folder in the place of the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from torch import nn

from adderize import AdderizeError, adderize, load_model, recalibrate, save_model
from adderize.checkpoints import named
from adderize.cli import main
from adderize.integer import to_integer
from adderize.models import lenet5_bn
from adderize.quantize import quantize

FILES = ["adderize.json", "model.safetensors"]


class Hub:
    """Repositories as folders, revisions as folders in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        self.calls.append((repo_id, revision))
        assert allow_patterns == FILES
        source = self.root / repo_id / (revision or "main")
        if not source.parent.is_dir():
            raise failure(errors.RepositoryNotFoundError)
        if not source.is_dir():
            raise failure(errors.RevisionNotFoundError)
        copy = self.root / "cache"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in allow_patterns:
            if (source / name).is_file():
                shutil.copy(source / name, copy)
        return str(copy)


def failure(kind: type[Exception], text: str = "404 Client Error") -> Exception:
    # In older releases what is not on this machine is an HTTP error too, without a response.
    if issubclass(kind, errors.HfHubHTTPError) and not issubclass(kind, FileNotFoundError):
        return kind(text, response=Mock(status_code=404, headers={}))
    return kind(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def network() -> nn.Module:
    return adderize(lenet5_bn(), stem=True, linear=True, init="normal")


def test_a_network_comes_back(hub: Hub, tmp_path: Path) -> None:
    model = network()
    save_model(model, tmp_path / "me" / "lenet-adder" / "main")
    with torch.no_grad():
        model.conv1.weight.add_(1)
    save_model(model, tmp_path / "me" / "lenet-adder" / "v1.2")
    first = load_model(lenet5_bn(), "hf://me/lenet-adder")
    second = load_model(lenet5_bn(), "hf://me/lenet-adder@v1.2")
    third = load_model(lenet5_bn(), Path("hf://me/lenet-adder@v1.2"))
    assert hub.calls == [("me/lenet-adder", None), *[("me/lenet-adder", "v1.2")] * 2]
    assert torch.equal(first.conv1.weight + 1, second.conv1.weight)
    for loaded in (second, third):
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])


def test_an_integer_network_comes_back(hub: Hub, tmp_path: Path) -> None:
    x = torch.randn(16, 1, 32, 32)
    eight_bit = quantize(recalibrate(network(), [x]), [x])
    integers = to_integer(eight_bit, mean=(0.5,), std=(0.25,))
    save_model(integers, tmp_path / "me" / "integers" / "main")
    pixels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(load_model("hf://me/integers")(pixels), integers(pixels))


def test_commands_and_names(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    save_model(model, tmp_path / "me" / "lenet" / "main")
    loaded = named.load("hf://me/lenet", "lenet5_bn").model
    assert torch.equal(loaded.fc1.weight, model.fc1.weight)
    assert named.blank("hf://me/lenet", "lenet5_bn").fc1.norm is not None
    started = named.start_from(lenet5_bn(), "lenet5_bn", "hf://me/lenet")
    assert torch.equal(started.fc1.weight, model.fc1.weight)
    assert named.hub_name("lenet5_bn", "hf://me/lenet@v1") == "me/lenet"
    assert named.hub_name("resnet18", "published") == named.hub_name("timm:x", "x.pth") == ""
    assert named.hub_name("timm:resnet18", "published").startswith("timm/resnet18")
    assert main(["inspect", "hf://me/lenet", "--arch", "lenet5_bn"]) == 0
    assert "hf://me/lenet, 5 layers" in capsys.readouterr().out
    assert main(["count", "hf://me/lenet", "--arch", "lenet5_bn"]) == 0
    assert main(["inspect", "hf://me/lenet"]) == 1
    assert "--arch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://me/nothing", r"no me/nothing on the Hugging Face Hub, or it is private"),
        ("hf://me/lenet@v9", r"me/lenet on the Hugging Face Hub has no revision v9"),
        ("hf://me/other", r"me/other on the Hugging Face Hub has no adderize\.json"),
        ("hf://lenet", r"'hf://lenet' is no network.*expected hf://owner/name"),
        ("hf://me/lenet/model", r"expected hf://owner/name"),
        ("hf://me/lenet@", r"expected hf://owner/name"),
        ("hf://../lenet x", r"expected hf://owner/name"),
    ],
)
def test_wrong_names(hub: Hub, tmp_path: Path, source: str, message: str) -> None:
    save_model(network(), tmp_path / "me" / "lenet" / "main")
    (tmp_path / "me" / "other" / "main").mkdir(parents=True)
    with pytest.raises(AdderizeError, match=message):
        load_model(lenet5_bn(), source)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failure(errors.LocalEntryNotFoundError), "is not on this machine yet.*cannot be reached"),
        (failure(errors.GatedRepoError), "terms to be accepted"),
        (ConnectionError("no\nroute"), "hf://me/lenet cannot be downloaded: no route"),
        (OSError(), "hf://me/lenet cannot be downloaded: OSError"),
    ],
)
def test_no_way_to_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    model = lenet5_bn()
    with pytest.raises(AdderizeError, match=message):
        load_model(model, "hf://me/lenet")
    assert type(model.conv1) is nn.Conv2d
