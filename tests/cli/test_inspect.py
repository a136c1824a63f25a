"""`adderize inspect` as a user meets it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adderize import adderize, recalibrate, save_model
from adderize.cli import main
from adderize.integer import multiplication_free
from adderize.models import lenet5_bn
from tests import fresh

ARCH = "adderize.models:lenet5_bn"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 grey noise images of 28x28."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path / "images.npy"


def test_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", ARCH, "--stem", "--linear", "--norm", "ignore"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{ARCH}, 5 layers, without images\n") and err == ""
    assert "missing norm: fc1, fc2. An adder without" in out
    assert "untrained statistics: bn1, bn2" in out
    assert "input range" not in out


def test_a_saved_model_with_images(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(adderize(lenet5_bn(), stem=True), tmp_path / "model")
    command = ["inspect", str(tmp_path / "model"), "--arch", ARCH, "--data", str(images)]
    assert main([*command, "--limit", "32", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert err == "adderize: images normalised with mean 0.1307 and deviation 0.3081\n"
    assert content["images"] == 32
    first = content["layers"][0]
    assert first["name"] == "conv1" and first["kind"] == "AdderConv2d"
    assert -0.4243 <= first["inputs"]["min"] < 0 < first["inputs"]["max"] <= 2.8215
    assert main([*command, "--mean", "0", "--std", "1", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    row = next(csv.DictReader(out.splitlines()))
    assert err == "" and 0 <= float(row["inputs.min"]) < 0.2
    assert 0.8 < float(row["inputs.max"]) <= 1
    assert main([*command, "--format", "md"]) == 0
    assert "| --- |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nosuchnet"], "unknown model 'nosuchnet'"),
        (["nowhere.pth", "--arch", ARCH], "does not exist"),
        ([ARCH, "--data", "nowhere"], "nowhere does not exist"),
        ([ARCH, "--data", ".", "--limit", "0"], "limit is 0"),
        (["torchvision.models:resnet18", "--data", "."], "--input"),
        (["resnet18", "--include", "nothing*"], "nothing*"),
        ([ARCH, "--data", ".", "--mean", "0.1,0.2"], "--mean has 2 values; expected 1"),
        (["resnet18", "--data", ".", "--std", "1,1"], "--std has 2 values; expected 1, or 3"),
        ([ARCH, "--mean", "0.1"], "name some by --data"),
        ([ARCH, "--input", "1,28,28"], "name some by --data"),
        ([ARCH, "--arch-options", "depth=3"], "unexpected keyword argument 'depth'"),
    ],
)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1]


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["inspect", ARCH, "--mean", "a,b"])
    assert leaving.value.code == 2 and "not a list of numbers" in capsys.readouterr().err


def test_what_is_imported() -> None:
    absent = {"lightning", "fvcore", "matplotlib", "pyarrow", "timm"}
    code = (
        "import sys; from adderize.cli import main; "
        f"main(['inspect', 'resnet18']); assert not {absent!r} & set(sys.modules)"
    )
    result = fresh.run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.shared
def test_the_authors_resnet20(
    models_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(models_folder / "resnet20-addernet-cifar10.pth")
    command = ["inspect", checkpoint, "--arch", "adderize.models:resnet20"]
    data = ["--data", str(data_folder / "cifar10"), "--limit", "200"]
    assert main([*command, *data, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    adders = [layer for layer in content["layers"] if layer["kind"] == "AdderConv2d"]
    assert len(adders) == 20
    for layer in adders:
        assert 5 < layer["filter_std"] < 10.5
        assert 25 < max(-layer["filters"]["min"], layer["filters"]["max"]) < 71
        assert layer["inputs"]["min"] == 0 and 1.6 < layer["inputs"]["max"] < 6.6
        assert 0.53 < layer["outside"] < 0.75
    assert [finding["kind"] for finding in content["findings"]] == ["dead filters"]


def test_a_network_without_multiplications(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = recalibrate(adderize(lenet5_bn()), [torch.randn(2, 1, 32, 32)])
    save_model(multiplication_free(model.eval()), tmp_path)
    assert main(["inspect", str(tmp_path), "--arch", ARCH]) == 0
    assert "layers of shifts and additions" in capsys.readouterr().out
