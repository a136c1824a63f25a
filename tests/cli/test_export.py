"""`adderize export`."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from adderize import adderize, save_model
from adderize.cli import main
from adderize.export.c.tools import host_compiler
from adderize.models import lenet5_bn
from tests.export.c.random_networks import random_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_network(0)[0], tmp_path / "small-net")
    return tmp_path / "small-net"


def test_c_is_written_and_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if host_compiler() is None:
        pytest.skip("no C compiler")
    size = random_network(0)[0].input_size
    images = torch.randint(0, 256, (5, *size), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    options = ["--data", str(tmp_path / "images.pt"), "--examples", "3", "--check"]
    assert main(["export", str(folder), "-o", str(tmp_path / "c"), *options]) == 0
    captured = capsys.readouterr()
    assert "3 of 3 images have the logits of PyTorch" in captured.err
    assert "multiplications" in captured.out
    header = (tmp_path / "c" / "small_net.h").read_text()
    assert "void small_net_run(const uint8_t *image, int32_t *logits);" in header


def test_hex_is_written(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder), "--format", "hex", "-o", str(tmp_path / "hex"), "--examples", "2"]
    assert main(["export", *arguments]) == 0
    assert json.loads((tmp_path / "hex" / "contents.json").read_text())["examples"] == 2


def test_onnx_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    arguments = ["lenet5_bn", "--format", "onnx", "-o", str(tmp_path), "--name", "lenet"]
    assert main(["export", *arguments]) == 0
    assert (tmp_path / "lenet.onnx").is_file()


def test_wrong_usage_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "lenet5_bn", "-o", str(tmp_path / "c")]) == 1
    assert "lenet5_bn is not an integer network" in capsys.readouterr().err
    save_model(adderize(lenet5_bn()), tmp_path / "float")
    assert main(["export", str(tmp_path / "float"), "-o", str(tmp_path / "c")]) == 1
    assert "float is not an integer network; expected a folder that" in capsys.readouterr().err
    assert main(["export", str(folder), "-o", str(tmp_path / "c"), "--examples", "0"]) == 1
    assert "--examples is 0" in capsys.readouterr().err
    assert main(["export", str(folder), "-o", str(tmp_path / "c"), "--name", "a-b"]) == 1
    assert "the name is 'a-b'" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("form", "options", "named"),
    [
        ("hex", ["--check"], "--format hex takes no --check"),
        ("onnx", ["--check"], "--format onnx takes no --check"),
        ("onnx", ["--examples", "3"], "--format onnx takes no --examples"),
        ("c", ["--input", "3,8,8"], "--format c takes no --input"),
        ("onnx", [], "an integer network has no ONNX form"),
    ],
)
def test_options_without_effect_are_refused(
    form: str,
    options: list[str],
    named: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", form, "-o", str(out), *options]) == 1
    assert named in capsys.readouterr().err
    assert not list(out.glob("*"))


@pytest.mark.parametrize("form", ["c", "hex"])
def test_a_folder_that_cannot_be_written_to_is_named(
    form: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", form, "-o", str(out)]) == 1
    assert f"cannot write to {out}: No space left on device" in capsys.readouterr().err


def test_examples_are_pixels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = random_network(0)[0].input_size
    torch.save(torch.randn(2, *size), tmp_path / "normalised.pt")
    options = ["--data", str(tmp_path / "normalised.pt")]
    assert main(["export", str(folder), "-o", str(tmp_path / "c"), *options]) == 1
    assert "holds normalised images; expected pixels" in capsys.readouterr().err
