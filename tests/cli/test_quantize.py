"""`adderize quantize` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adderize import adderize, load_model, recalibrate, save_model
from adderize.cli import main
from adderize.data.image_sources import load_images
from adderize.data.normalisation import MNIST
from adderize.models import lenet5_bn

ARCH = "adderize.models:lenet5_bn"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A LeNet of adders whose norms have seen noise, and 40 grey images of 28x28 beside it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    model = adderize(lenet5_bn(), stem=True, linear=True, head=True, init="normal")
    recalibrate(model, [load_images(tmp_path / "images.npy", (1, 32, 32), MNIST)])
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
    x = load_images(saved / "images.npy", (1, 32, 32), MNIST)
    deviation = (quantized(x) - model(x)).square().mean().sqrt() / model(x).std(0).mean()
    assert float(deviation.detach()) < 0.3
    with pytest.raises(SystemExit):
        main([*command, "--bits", "9"])
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
    command = ["quantize", "--arch", ARCH, "-o", str(saved / "bytes"), "--data"]
    if model == "bytes":
        assert main([*command, str(saved / data), str(saved / "float")]) == 0
    assert main([*command, str(saved / data), str(saved / model)]) == 1
    assert message in capsys.readouterr().err
