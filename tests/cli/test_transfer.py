"""`adderize transfer` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image

from adderize import load_model
from adderize.cli import main
from adderize.data import EMBEDDED, load_mnist
from adderize.data.image_sources import load_labelled
from adderize.data.normalisation import MNIST, normalised
from adderize.models import lenet5_bn

ARCH = "adderize.models:lenet5_bn"


def _write_idx(path: Path, values: np.ndarray) -> None:
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real digits as MNIST/raw, and lenet.pt, trained on them for some seconds."""
    folder = tmp_path_factory.mktemp("transfer")
    digits = load_mnist(EMBEDDED, 28)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, split in (("train", digits.train), ("t10k", digits.test)):
        _write_idx(raw / f"{name}-images-idx3-ubyte", split.images[:, 0].numpy())
        _write_idx(raw / f"{name}-labels-idx1-ubyte", split.labels.numpy())
    torch.manual_seed(0)
    model = lenet5_bn()
    images, labels = load_mnist(EMBEDDED).train
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(80):
        picked = torch.randint(len(images), (64,))
        F.cross_entropy(model(normalised(images[picked], *MNIST)), labels[picked]).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), folder / "lenet.pt")
    return folder


def _command(trained: Path, output: Path, *more: str) -> list[str]:
    return [
        "transfer", ARCH, "--weights", str(trained / "lenet.pt"), "--data", str(trained),
        "-o", str(output), "--images", "300", "--test-images", "400", *more,
    ]  # fmt: skip


def test_from_a_trained_network_to_a_saved_one(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--linear", "--stem", "--labels", "--steps", "30", "--epochs", "1", "--no-flip"]
    command = _command(trained, tmp_path / "out", *more, "--limit", "1000")
    assert main([*command, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result == json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert f"saved in {tmp_path / 'out'}" in err
    stages: dict[str, Any] = {stage["name"]: stage for stage in result["stages"]}
    assert list(stages) == [
        "trained network", "converted", "reconstructed", "fine-tuned", "8 bits"
    ]  # fmt: skip
    top1 = {name: stage["top1"] for name, stage in stages.items()}
    assert top1["trained network"] > 85
    assert top1["reconstructed"] > top1["trained network"] - 10
    assert top1["fine-tuned"] > top1["trained network"] - 5
    assert top1["8 bits"] > top1["fine-tuned"] - 3
    assert stages["trained network"]["agreement"] == 100
    assert [row["name"] for row in result["transfer"]["layers"]] == ["conv1", "conv2", "fc1", "fc2"]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"README.md", "model.safetensors", "adderize.json", "transfer.json", "int8"}
    for folder, stage in (("out", "fine-tuned"), ("out/int8", "8 bits")):
        (measured,) = ModelCard.load(tmp_path / folder / "README.md").data.eval_results or ()
        assert measured.metric_value == pytest.approx(top1[stage] / 100)
    x = load_labelled(trained, (1, 32, 32), MNIST, limit=400)[0]
    labels = torch.from_numpy(
        np.fromfile(trained / "MNIST/raw/t10k-labels-idx1-ubyte", np.uint8)[8:]
    )
    labels = labels[[index * len(labels) // 400 for index in range(400)]]
    for folder, stage in (("out", "fine-tuned"), ("out/int8", "8 bits")):
        model = load_model(lenet5_bn(), tmp_path / folder).eval()
        with torch.no_grad():
            hits = (model(x).argmax(1) == labels).double().mean()
        assert 100 * float(hits) == pytest.approx(top1[stage])


def test_without_labels_it_tells_the_agreement(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(trained, tmp_path / "out", "--method", "match", "--epochs", "1")) == 0
    out = capsys.readouterr().out
    table = [line.split("  ") for line in out.split("\n\n")[-2].splitlines()]
    assert [line[0] for line in table] == [
        "stage", "trained network", "converted", "matched", "fine-tuned", "8 bits"
    ]  # fmt: skip
    assert "top-1" not in out
    assert float(table[1][-1]) == 100
    assert out.endswith("agreement: decided as by the trained network\n")
    assert "correlation with the teacher" in out


def test_it_goes_on_where_it_was_stopped(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from adderize.transfer import features, layerwise

    command = _command(trained, tmp_path / "out", "--linear", "--stem", "--steps", "5")
    expected = _command(trained, tmp_path / "whole", "--linear", "--stem", "--steps", "5")
    assert main(expected) == 0
    fit, count = layerwise.fit_filters, 0

    def stopping(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        fit(*args, **options)

    monkeypatch.setattr(layerwise, "fit_filters", stopping)
    assert main(command) == 130
    assert (tmp_path / "out" / "transfer-state.pt").is_file()
    assert main(command) == 0
    assert count == 3 + 2
    first, second = (load_model(lenet5_bn(), tmp_path / name) for name in ("out", "whole"))
    for key, tensor in first.state_dict().items():
        assert tensor.equal(second.state_dict()[key]), key
    assert features is not None


def test_the_images_lie_all_over_the_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def looking(model: Any, teacher: Any, few: torch.Tensor, **options: Any) -> None:
        seen.append(few)
        raise KeyboardInterrupt

    monkeypatch.setattr("adderize.cli.transfer.match", looking)
    command = _command(trained, tmp_path / "out", "--method", "match", "--limit", "500")
    assert main(command) == 130
    images, _ = load_labelled(trained, seen[0].shape[1:], MNIST, limit=500, split="train")
    assert seen[0].equal(images[torch.arange(300) * 5 // 3])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "1"], "--images is 1; expected 2 or more"),
        (["--epochs", "-1"], "--epochs is -1; expected 0 or more"),
        (["--eta", "0"], "eta is 0.0; expected a finite number above 0"),
        (["--lr", "nan"], "--lr is nan; expected a number above 0"),
        (["--lr=-0.1"], "--lr is -0.1; expected a number above 0"),
        (["--weights", "/nowhere.pt"], "/nowhere.pt"),
        (["--arch-options", "shortcut"], "'shortcut' is not KEY=VALUE"),
        (["--device", "quantum"], "--device quantum cannot be used"),
        (["--exclude", "conv7"], "'conv7' matches no layer"),
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--input", "1,28,28"], "the network fails on images 100x1x28x28: mat1 and mat2 shapes"),
    ],
)
def test_mistakes(
    trained: Path, tmp_path: Path, more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(_command(trained, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("folders", [0, 2])
def test_labels_that_are_not_there(
    folders: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or are others than the network's classes, which is said once."""
    data = tmp_path / "data"
    for folder in range(folders):
        (data / str(folder)).mkdir(parents=True)
        for image in range(4):
            Image.new("L", (28, 28)).save(data / str(folder) / f"{image}.png")
    if not folders:
        np.save(data := tmp_path / "images.npy", np.zeros((4, 28, 28), dtype=np.uint8))
    command = _command(trained, tmp_path / "out", "--labels")
    command[command.index("--data") + 1] = str(data)
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "has no labels for the network's classes: leave --labels out" in told
    assert told.count("2 class folders, the network 10 classes: its labels are left out") == (
        folders > 0
    )
