"""Runs that are stopped from outside say so, and go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from recipes import mnist
from recipes.figures import __main__ as figures
from recipes.image_classifier import ImageClassifier
from recipes.run import continued
from tests.recipes.test_mnist import arguments


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends this process a signal in the first step of an epoch; Lightning ignores SIGINT then."""
    step = ImageClassifier.training_step

    def patch(number: signal.Signals, epoch: int) -> None:
        def stopped(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.current_epoch == epoch and batch_idx == 0:
                os.kill(os.getpid(), number)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(ImageClassifier, "training_step", stopped)

    # A process that was started in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield patch
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "code", "what"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_run_says_how_it_goes_on(
    number: signal.Signals,
    code: int,
    what: str,
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stop: Any,
) -> None:
    folder = tmp_path / "my run"
    stop(number, 1)
    assert mnist.main(arguments(mnist_folder, folder)) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"recipes.mnist: {what}; ")
    resume = shlex.split(said.split("recipes.mnist ")[-1])
    assert resume == ["--resume", str(folder)]
    monkeypatch.undo()
    assert mnist.main(resume) == 0
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2


def test_a_run_stopped_in_its_first_epoch_has_nothing_to_go_on_from(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: Any
) -> None:
    folder = tmp_path / "run"
    stop(signal.SIGTERM, 0)
    assert mnist.main(arguments(mnist_folder, folder)) == 143
    assert f"{folder} has nothing to go on from" in capsys.readouterr().err.splitlines()[-1]
    assert mnist.main(arguments(mnist_folder, folder)) == 1
    assert "ended within its first epoch" in capsys.readouterr().err.splitlines()[-1]


def test_an_interruption_outside_of_the_training(
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "load_mnist", interrupt)
    assert mnist.main(arguments(mnist_folder, tmp_path / "run")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "recipes.mnist: interrupted"


def test_a_finished_run_is_not_taken_for_one_without_checkpoints(tmp_path: Path) -> None:
    for name in ("arguments.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    assert continued(["--output", str(tmp_path)], tmp_path) == ["--output", str(tmp_path)]
    assert (tmp_path / "arguments.json").exists()


def test_figures_go_on_with_interrupted_runs(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    options = ["filters", "--runs", str(tmp_path / "runs"), "--data", str(mnist_folder),
               "--epochs", "2", "--train", "--output", str(tmp_path / "out")]  # fmt: skip
    step, train = ImageClassifier.training_step, mnist.train
    monkeypatch.setattr(mnist, "train", lambda argv: train([*argv, "--batch-size", "32"]))
    stop(signal.SIGTERM, 1)
    assert figures.main(options) == 143
    monkeypatch.setattr(ImageClassifier, "training_step", step)
    assert figures.main(options) == 0
    assert (tmp_path / "out" / "filters.png").exists()


def test_slurm_s_requeueing_leaves_runs_alone(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would save in mid-epoch at SIGUSR1, and load that for the tests and other runs."""
    expected = mnist.train(arguments(mnist_folder, tmp_path / "elsewhere"))["test.top1"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"what another job was requeued with")
    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    handlers = set()
    step = ImageClassifier.training_step

    def watched(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        handlers.add(signal.getsignal(signal.SIGUSR1))
        assert isinstance(self.trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
        return step(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(ImageClassifier, "training_step", watched)
    assert mnist.train(arguments(mnist_folder, tmp_path / "run"))["test.top1"] == expected
    assert handlers == {before}
