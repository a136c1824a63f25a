"""The MNIST recipe end to end on a tiny set: results, resuming, and what goes wrong."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from adderize import AdderConv2d, AdderLinear, load_model
from adderize.errors import AdderizeError
from adderize.models import lenet5_bn
from recipes import mnist
from recipes.image_classifier import ImageClassifier
from recipes.run.folder import _numbered_folder
from tests.recipes.runs import exit_code, killed

ADDERS = {
    "adder": ["conv1", "conv2", "fc1", "fc2", "fc3"],
    "adder-inner": ["conv2"],
    "cnn": [],
}
KEYS = {
    "test.top1",
    "train.top1",
    "layers",
    "converted",
    "epochs",
    "seconds_per_epoch",
    "peak_memory_mb",
    "backend",
    "seed",
}


def arguments(mnist_folder: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(mnist_folder), "--output", str(output), "--batch-size", "32",
            "--epochs", "2", *more]  # fmt: skip


@pytest.mark.parametrize("layers", list(ADDERS))
def test_a_run(
    layers: str, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert mnist.main(arguments(mnist_folder, folder, "--layers", layers)) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert metrics["layers"] == layers
    assert metrics["converted"] == ADDERS[layers]
    assert metrics["epochs"] == 2
    assert metrics["seed"] == 0
    assert metrics["steps"] == 6
    assert 0 <= metrics["test.top1"] <= 100
    assert metrics["seconds_per_epoch"] > 0
    assert metrics["peak_memory_mb"] > 50
    assert [row["epoch"] for row in metrics["history"]] == [1, 2]
    _check_operations(metrics)

    captured = capsys.readouterr()
    first, *_, last = captured.out.splitlines()
    assert first.startswith(f"backend: {metrics['backend']} on ")
    assert str(folder / "metrics.json") in last
    assert f"test top-1       {metrics['test.top1']:.2f} %, batch norms recal" in captured.out
    assert captured.err.count("epoch ") == 2
    assert (folder / "logs" / "version_0" / "metrics.csv").is_file()


def test_lenet_plus_plus(mnist_folder: Path, tmp_path: Path) -> None:
    more = ("--arch", "lenet_plus_plus", "--max-steps", "1")
    metrics = mnist.train(arguments(mnist_folder, tmp_path / "run", *more))
    assert len(metrics["converted"]) == 8
    module = ImageClassifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert module.model.fc2.weight.shape == (10, 2)


def _check_operations(metrics: dict[str, Any]) -> None:
    before, after = metrics["operations"]["before"], metrics["operations"]["after"]
    pairs = 416_520
    assert pairs < before["multiplications"] < pairs + 8000
    if metrics["layers"] == "cnn":
        assert after == before
    elif metrics["layers"] == "adder":
        assert after["multiplications"] < 8000
        assert after["additions"] > 2 * pairs
    else:
        assert before["multiplications"] - after["multiplications"] == 240_000


def test_what_a_run_leaves_can_be_loaded(mnist_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = mnist.train(arguments(mnist_folder, folder, "--gradient", "sign"))
    model = load_model(lenet5_bn(), folder / "model")
    module = ImageClassifier.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    filters = [m for m in module.modules() if isinstance(m, AdderConv2d | AdderLinear)]
    assert len(filters) == 5
    assert {layer.gradient for layer in filters} == {"sign"}
    exported, trained = dict(model.named_parameters()), dict(module.model.named_parameters())
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)

    data = mnist.load_mnist(str(mnist_folder))
    images = (data.test.images / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        right = (model.eval()(images).argmax(1) == data.test.labels).double().mean()
    assert 100 * right.item() == pytest.approx(metrics["test.top1"], abs=1e-3)
    assert (folder / "checkpoints" / "best.ckpt").is_file()


def test_recalibration_uses_training_images(mnist_folder: Path, tmp_path: Path) -> None:
    mnist.train(arguments(mnist_folder, tmp_path / "run", "--layers", "cnn", "--batch-size", "96"))
    model = load_model(lenet5_bn(), tmp_path / "run" / "model")
    data = mnist.load_mnist(str(mnist_folder))
    outputs = model.conv1((data.train.images / 255 - 0.1307) / 0.3081).detach()
    norm = model.bn1
    torch.testing.assert_close(norm.running_mean, outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, outputs.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "more", [(), ("--max-steps", "11"), ("--rate", "ilr"), ("--layers", "cnn")]
)
def test_resuming_gives_what_the_uninterrupted_run_gives(
    more: tuple[str, ...], mnist_folder: Path, tmp_path: Path
) -> None:
    more = ("--epochs", "4", "--num-threads", "1", *more)
    whole = mnist.train(arguments(mnist_folder, tmp_path / "whole", *more))
    with killed(2):
        mnist.train(arguments(mnist_folder, tmp_path / "parts", *more))
    parts = mnist.train(["--resume", str(tmp_path / "parts")])
    expected, found = (
        load_model(lenet5_bn(), tmp_path / name / "model").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for metrics in (whole, parts):
        for key in ("seconds_per_epoch", "images_per_second", "peak_memory_mb"):
            metrics.pop(key)
        for row in metrics["history"]:
            row.pop("images/s")
    assert parts == whole
    assert len(parts["history"]) == 4


def test_resuming_after_the_last_epoch(mnist_folder: Path, tmp_path: Path) -> None:
    """The process died between the last checkpoint and the metrics."""
    for steps in ((), ("--max-steps", "5")):
        folder = tmp_path / "-".join(("run", *steps))
        whole = mnist.train(arguments(mnist_folder, folder, *steps))
        (folder / "metrics.json").unlink()
        shutil.rmtree(folder / "model")
        again = mnist.train(["--resume", str(folder)])
        for key in ("test.top1", "train.top1", "steps", "epochs", "history"):
            assert again[key] == whole[key]


def test_max_steps_ends_the_schedule(mnist_folder: Path, tmp_path: Path) -> None:
    metrics = mnist.train(arguments(mnist_folder, tmp_path / "run", "--max-steps", "4"))
    assert metrics["steps"] == 4
    assert metrics["epochs"] == pytest.approx(4 / 3, abs=0.01)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0)


def test_ilr_raises_only_the_gradients_rate(mnist_folder: Path, tmp_path: Path) -> None:
    mnist.train(arguments(mnist_folder, tmp_path / "run", "--rate", "ilr", "--max-steps", "1"))
    module = ImageClassifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    rest, filters = checkpoint["optimizer_states"][0]["param_groups"]
    assert len(filters["params"]) == 5
    assert len(filters["params"]) + len(rest["params"]) == len(list(module.parameters()))
    assert filters["initial_lr"] == pytest.approx(100 * rest["initial_lr"])
    assert filters["initial_lr"] * filters["weight_decay"] == pytest.approx(0.1 * 5e-4)


def test_a_diverging_run_keeps_its_checkpoint(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    step = ImageClassifier.training_step

    def diverge(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        return loss * math.nan if self.current_epoch == 1 and batch_idx == 1 else loss

    monkeypatch.setattr(ImageClassifier, "training_step", diverge)
    assert mnist.main(arguments(mnist_folder, tmp_path / "run", "--epochs", "4")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "loss is nan in epoch 2" in error
    assert "lower --lr" in error
    assert str(tmp_path / "run" / "checkpoints") in error
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_huge_rate_ends_with_an_error(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--lr", "1e30", "--layers", "cnn")
    assert mnist.main(arguments(mnist_folder, tmp_path / "run", *more)) == 1
    assert "the training has diverged" in capsys.readouterr().err.splitlines()[-1]


def test_no_run_is_overwritten(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    command = arguments(mnist_folder, tmp_path / "run", "--max-steps", "1")
    assert mnist.main(command) == 0
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert mnist.main(command) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert mnist.main(["--resume", str(tmp_path / "run")]) == 1
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before

    monkeypatch.chdir(tmp_path)
    for number in range(2):
        assert mnist.main(["--data", str(mnist_folder), "--batch-size", "96", "--steps", "1"]) == 0
        assert (tmp_path / "runs" / "mnist" / f"version_{number}" / "metrics.json").exists()


def test_runs_that_start_at_once_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(_numbered_folder, [tmp_path] * 64))
    assert sorted(found) == sorted(tmp_path / f"version_{number}" for number in range(64))


def test_a_run_resumes_only_as_itself(mnist_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mnist.train(arguments(mnist_folder, folder))
    (folder / "metrics.json").unlink()
    for wrong in (("--layers", "cnn"), ("--seed", "1"), ("--epochs", "9")):
        with pytest.raises(AdderizeError, match=f"{wrong[0]} is {wrong[1]}, but the run in"):
            mnist.train(["--resume", str(folder), *wrong])
    with pytest.raises(AdderizeError, match="is not the resumed run's folder"):
        mnist.train(["--resume", str(folder), "--output", str(tmp_path / "other")])
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    with pytest.raises(AdderizeError, match="cannot resume from"):
        mnist.train(["--resume", str(folder)])
    with pytest.raises(AdderizeError, match="cannot resume from"):
        mnist.train(["--resume", str(tmp_path / "nowhere")])
    best = str(folder / "checkpoints" / "best.ckpt")
    assert mnist.train(["--resume", best])["epochs"] == 2


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--layers", "adders"], 2, "invalid choice"),
        (["--epochs", "0"], 2, "not a positive integer"),
        (["--lr", "-1"], 2, "not a positive number"),
        (["--eta", "nan"], 2, "not a positive number"),
        (["--max-steps", "many"], 2, "invalid int value"),
        (["--seed", "-1"], 2, "not a seed"),
        (["--batch-size", "1"], 1, "--batch-size is 1; expected 2 to 96"),
        (["--data", "/nowhere"], 1, "no MNIST in /nowhere"),
        (["--precision", "16-mixed", "--accelerator", "cpu"], 1, "needs a GPU"),
        (["--layers", "cnn", "--eta", "0.1"], 1, "--eta means nothing with --layers cnn"),
        (["--layers", "cnn", "--rate", "ilr"], 1, "--rate means nothing with --layers cnn"),
        (["--layers", "cnn", "--gradient", "sign"], 1, "--gradient means nothing"),
        (["--rate", "ilr", "--eta", "0.1"], 1, "--eta means nothing with --rate ilr"),
        (["--output", "/dev/null/run"], 1, "cannot write to --output"),
    ],
)
def test_wrong_arguments(
    more: list[str],
    code: int,
    message: str,
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(mnist_folder, tmp_path / "run", *more)
    assert exit_code(mnist.main, command) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_reference_is_announced(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("ADDERIZE_BACKEND", "reference")
    monkeypatch.delenv("ADDERIZE_REQUIRE_NATIVE", raising=False)
    metrics = mnist.train(arguments(mnist_folder, tmp_path / "run", "--max-steps", "1"))
    captured = capsys.readouterr()
    assert metrics["backend"] == "reference"
    assert captured.out.startswith("backend: reference on ")
    assert "the reference implementation is slow" in captured.err
    more = ("--max-steps", "1", "--layers", "cnn")
    mnist.train(arguments(mnist_folder, tmp_path / "cnn", *more))
    assert "slow" not in capsys.readouterr().err


def test_as_a_command(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results on stdout, progress and logs on stderr, no carriage returns when piped."""
    command = [sys.executable, "-m", "recipes.mnist"]
    done = subprocess.run(
        command + arguments(mnist_folder, tmp_path / "run"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("backend: ")
    assert "\r" not in done.stdout + done.stderr
    assert "epoch 1" not in done.stdout
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert exit_code(mnist.main, ["--help"]) == 0
    assert "--data DIR|embedded" in capsys.readouterr().out
