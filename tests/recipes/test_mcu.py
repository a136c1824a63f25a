"""The recipe for microcontrollers on a tiny set: its stages, its teacher, its files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adderize import load_model
from adderize.models import micro_cnn
from recipes import mcu, mnist

STAGES = {"float", "rounded", "fine-tuned", "bytes", "integers"}


def arguments(mnist_folder: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(mnist_folder), "--output", str(output), "--batch-size", "32",
            "--epochs", "1", "--tuning-epochs", "2", "--accelerator", "cpu", *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(kept_mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, for every test to copy."""
    folder = tmp_path_factory.mktemp("mcu") / "run"
    torch.manual_seed(0)
    mcu.train(arguments(kept_mnist_folder, folder))
    return folder


def test_a_run_with_a_teacher(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, folder = tmp_path / "teacher", tmp_path / "run"
    more = ("--epochs", "1", "--layers", "cnn", "--distort", "--batch-size", "32")
    mnist.train(["--data", str(mnist_folder), "--output", str(teacher), *more])
    more = ("--kd-teacher", str(teacher), "--distortion", "1")
    assert mcu.main(arguments(mnist_folder, folder, *more)) == 0
    results = json.loads((folder / "mcu.json").read_text())
    assert results.keys() >= STAGES and all(0 <= results[name] <= 100 for name in STAGES)
    assert [row["steps"] for row in results["tuning"]] == [3, 3]
    printed = capsys.readouterr().out
    assert re.search(rf"integer-only +{results['integers']:.2f}\n", printed)

    assert (folder / "c" / "mnist.c").is_file()
    if "flash" in results["c"]:
        assert results["c"]["equal"] == 10
        assert results["c"]["flash"] <= 16 * 1024
        assert results["c"]["memory"] + results["c"]["stack"] <= 2048

    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    integers: Any = load_model(folder / "integers")
    quantized = load_model(micro_cnn(), folder / "quantized")
    assert integers(images).dtype == torch.int32
    close = integers.logits(images) - quantized(images / 255 * 4)
    assert float(close.abs().max()) < 0.5
    filters = [i.tensors["weight"] for i in integers.program.instructions if "weight" in i.tensors]
    assert len(filters) == 6
    assert all((weight % 16 == 0).all() for weight in filters)


def test_fine_tuning_alone_starts_from_a_run(
    finished: Path, mnist_folder: Path, tmp_path: Path
) -> None:
    more = ("--trained", str(finished), "--max-steps", "1", "--filter-bits", "2")
    second = mcu.train(arguments(mnist_folder, tmp_path / "b", *more))
    assert second["float"] == json.loads((finished / "mcu.json").read_text())["float"]
    assert [row["steps"] for row in second["tuning"]] == [1]
    assert not (tmp_path / "b" / "model").exists()


def test_fine_tuning_that_was_cut_off_is_done_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    whole = json.loads((folder / "mcu.json").read_text())
    (folder / "mcu.json").unlink()
    (folder / "c" / "mnist.c").unlink()
    model = folder / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    mcu.train(["--resume", str(folder)])
    parts = json.loads((folder / "mcu.json").read_text())
    for results in (whole, parts):
        for row in results["tuning"]:
            row.pop("seconds")
    assert parts == whole and (folder / "c" / "mnist.c").is_file()
    assert model.stat().st_mtime_ns == written
    assert mcu.main(["--resume", str(folder)]) == 1
    assert f"is finished: see {folder / 'mcu.json'}" in capsys.readouterr().err


def test_the_first_of_several_processes_goes_on_alone(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcu.rank_zero_only, "rank", 1)
    monkeypatch.setattr(mcu.classifier, "train", lambda *_: {})
    assert mcu.train(arguments(mnist_folder, tmp_path / "run", "--devices", "2")) == {}
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_network(
    finished: Path, kept_mnist_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    mcu.train(arguments(kept_mnist_folder, tmp_path))
    for name in ("integers/model.safetensors", "quantized/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--filter-bits", "9"), "filter_bits is 9"),
        (("--method", "median"), "expected one of 'minmax'"),
        (("--trained", "nowhere"), "nowhere"),
        (("--kd-teacher", "nowhere"), "kd-teacher"),
        (("--kd-mean", "0.1", "0.2"), "--kd-mean and --kd-std: mean is (0.1, 0.2)"),
    ],
)
def test_mistakes(
    more: tuple[str, ...],
    message: str,
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if more[0] == "--kd-mean":
        more += ("--kd-teacher", "lenet5_bn")
    assert mcu.main(arguments(mnist_folder, tmp_path / "run", *more)) == 1
    assert message in capsys.readouterr().err
