"""`adderize report` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adderize import load_model, recalibrate, save_model
from adderize.cli import main
from adderize.data.image_sources import load_labelled
from adderize.data.normalisation import MNIST
from adderize.models import lenet5_bn
from adderize.surgery import adderize

ARCH = "adderize.models:lenet5_bn"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A LeNet of adders whose norms have seen noise, and 40 grey images of 28x28 beside it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    model = adderize(lenet5_bn(), stem=True, linear=True, init="normal")
    recalibrate(model, [load_labelled(tmp_path / "images.npy", (1, 32, 32), MNIST)[0]])
    save_model(model, tmp_path / "model")
    return tmp_path


def test_a_saved_model(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = saved / "report.html"
    command = ["report", str(saved / "model"), "--arch", ARCH, "--data", str(saved / "images.npy")]
    assert main([*command, "--limit", "32", "-o", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == f"adderize: wrote {page}"
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert (
        "measured on 32 images of images.npy, normalised with mean 0.1307 and deviation 0.3081"
    ) in text
    assert f"<title>model ({ARCH}): adder network report</title>" in text
    assert str(saved) not in text
    assert load_model(lenet5_bn(), saved / "model").conv1.weight.shape == (6, 1, 5, 5)


def test_an_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", ARCH, "--stem", "-o", str(tmp_path / "r.html")]) == 0
    err = capsys.readouterr().err
    assert "without quantization: errors in 8 bits are measured on images" in err
    assert "2 adders, 3 kept" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nosuchnet"], "unknown model 'nosuchnet'"),
        (["nowhere.pth"], "nowhere.pth does not exist"),
        (["nowhere", "--arch", ARCH], "nowhere does not exist; expected a checkpoint"),
        ([ARCH, "--data", "nowhere"], "nowhere does not exist"),
        ([ARCH, "--input", "7"], "an input of (7,) cannot be traced"),
        ([ARCH, "--include", "nothing*"], "nothing*"),
        ([ARCH, "--energy", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main(["report", *argv, "-o", str(page)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and not page.exists()


@pytest.mark.shared
def test_the_authors_resnet20(models_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    checkpoint = str(models_folder / "resnet20-addernet-cifar10.pth")
    data = ["--data", str(data_folder / "cifar10"), "--limit", "64"]
    assert main(["report", checkpoint, "--arch", "resnet20", *data, "-o", str(page)]) == 0
    text = page.read_text()
    assert "20 adders, 2 kept" in text and "dead filters" in text
    assert "20 adders in 8-bit integers" in text


def test_a_checkpoint_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lenet.pt"
    torch.save(adderize(lenet5_bn()).state_dict(), file)
    before = file.read_bytes()
    arguments = [str(file), "--arch", ARCH, "-o", str(file)]
    assert main(["report", *arguments]) == 1
    assert "the result would replace" in capsys.readouterr().err
    assert file.read_bytes() == before
    save_model(adderize(lenet5_bn()), tmp_path / "saved")
    for name in ("model.safetensors", "adderize.json"):
        before = (tmp_path / "saved" / name).read_bytes()
        arguments = [str(tmp_path / "saved"), "--arch", ARCH, "-o", str(tmp_path / "saved" / name)]
        assert main(["report", *arguments]) == 1
        assert "the result would replace" in capsys.readouterr().err
        assert (tmp_path / "saved" / name).read_bytes() == before
