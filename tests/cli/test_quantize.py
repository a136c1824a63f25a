"""`adderize quantize` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adderize import adderize, load_model, recalibrate, save_model
from adderize.cli import main
from adderize.data.image_sources import load_labelled
from adderize.data.normalisation import MNIST
from adderize.models import lenet5_bn
from tests.integer.networks import Segments

ARCH = "adderize.models:lenet5_bn"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A LeNet of adders whose norms have seen noise, and 40 grey images of 28x28 beside it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    model = adderize(lenet5_bn(), stem=True, linear=True, head=True, init="normal")
    recalibrate(model, [load_labelled(tmp_path / "images.npy", (1, 32, 32), MNIST)[0]])
    save_model(model, tmp_path / "float")
    return tmp_path


def test_a_saved_model_in_bytes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(saved / "float"), "--arch", ARCH, "--data"]
    command += [str(saved / "images.npy"), "-o", str(saved / "bytes"), "--limit", "20"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "5 adders in 8-bit integers, ranges by minmax"
    assert f"saved in {saved / 'bytes'}" in err
    model, quantized = (load_model(lenet5_bn(), saved / name).eval() for name in ("float", "bytes"))
    x = load_labelled(saved / "images.npy", (1, 32, 32), MNIST)[0]
    deviation = (quantized(x) - model(x)).square().mean().sqrt() / model(x).std(0).mean()
    assert float(deviation.detach()) < 0.3
    with pytest.raises(SystemExit):
        main([*command, "--bits", "9"])
    assert main([*command, "--bits", "4", "--filter-bits", "5"]) == 1
    assert main([*command, "--bits", "4", "--method", "mse", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits"] == 4 and report["method"] == "mse" and len(report["layers"]) == 5


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("float", "nothing.npy", "nothing.npy"),
        ("nowhere", "images.npy", "nowhere"),
        ("bytes", "images.npy", "quantized already"),
    ],
)
def test_wrong_inputs(
    saved: Path, model: str, data: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", "--arch", ARCH, "--data", str(saved / data), "-o"]
    if model == "bytes":
        assert main([*command, str(saved / "bytes"), str(saved / "float")]) == 0
    assert main([*command, str(saved / "again"), str(saved / model)]) == 1
    assert message in capsys.readouterr().err


def test_a_saved_model_in_integers(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(saved / "float"), "--arch", ARCH, "--data"]
    command += [str(saved / "images.npy"), "-o", str(saved / "integers"), "--limit", "20"]
    assert main([*command, "--integer"]) == 0
    out = capsys.readouterr().out
    assert "0 multiplications" in out
    *stages, blank, images = out.splitlines()[-5:]
    assert [line.split()[0] for line in stages] == ["trained", "8", "integers"]
    assert not blank and images.startswith("20 images; ")
    network = load_model(saved / "integers")
    assert network.program.mean == MNIST.mean and network.program.std == MNIST.std
    given = ["--integer", "--mean", "0.5", "--std", "0.25", "--terms", "2", "1"]
    assert main([*command, *given, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 20 and [s["name"] for s in report["stages"]][-1] == "integers"
    network = load_model(saved / "integers")
    assert (network.program.mean, network.program.std) == ((0.5,), (0.25,))
    assert (network.report.norm_terms, network.report.filter_terms) == (2, 1)
    assert main(["inspect", str(saved / "integers")]) == 0
    assert "bytes between the layers" in capsys.readouterr().out
    assert main(["inspect", str(saved / "integers"), "--data", str(saved / "images.npy")]) == 1
    assert "leave out --data" in capsys.readouterr().err
    assert main(["count", str(saved / "integers"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["multiplications"] == 0


def test_a_segmentation_in_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 8, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        folder = tmp_path / "images" / str(index % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    model = adderize(Segments())
    data = ["--data", str(tmp_path / "images"), "--mean", "0.5", "--std", "0.25"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    save_model(recalibrate(model, [(pixels - 0.5) / 0.25]), tmp_path / "float")
    command = ["quantize", str(tmp_path / "float"), "--arch", f"{Segments.__module__}:Segments"]
    command += [*data, "-o", str(tmp_path / "integers"), "--integer", "--format", "json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    raw = torch.from_numpy(images).permute(0, 3, 1, 2)
    integers = load_model(tmp_path / "integers")(raw).argmax(1)
    with torch.no_grad():
        floats = model.eval()((pixels - 0.5) / 0.25).argmax(1)
    same = 100 * float((integers == floats).double().mean())
    assert report["images"] == 12
    agreement = pytest.approx(same)
    assert report["stages"][-1] == {"name": "integers", "top1": None, "agreement": agreement}
    assert 90 < same < 100


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("float", "float"),
        ("float/../float", "float"),
        ("float/model.safetensors", "float"),
        ("float/adderize.json", "float"),
        ("run", "run/model"),
    ],
)
def test_what_is_quantized_is_not_replaced(
    source: str, output: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if output == "run/model":  # where a recipe's run keeps its model
        shutil.copytree(saved / "float", saved / output, dirs_exist_ok=True)
    before = (saved / output / "model.safetensors").read_bytes()
    command = ["quantize", str(saved / source), "--arch", ARCH, "--data", str(saved / "images.npy")]
    assert main([*command, "-o", str(saved / output)]) == 1
    assert "the result would replace" in capsys.readouterr().err
    assert (saved / output / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("folders", [10, 2])
def test_labels_give_top1(folders: int, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there are as many class folders as classes: of a part the numbers are others."""
    pixels = np.load(saved / "images.npy")
    for index, image in enumerate(pixels[:20]):
        folder = saved / "classes" / str(index % folders)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    command = ["quantize", str(saved / "float"), "--arch", ARCH, "--data", str(saved / "classes")]
    assert main([*command, "-o", str(saved / "integers"), "--integer"]) == 0
    found = capsys.readouterr()
    assert ("top-1, %" in found.out) == (folders == 10)
    told = "has 2 class folders, the network 10 classes: its labels are left out"
    assert (told in found.err) == (folders == 2)
