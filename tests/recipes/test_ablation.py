"""The ablation on a tiny set: its table and curves, what it reuses, and runs that diverge."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import ablation, mnist
from recipes.ablation import Cell, Trial
from recipes.image_classifier import ImageClassifier
from tests.recipes.runs import exit_code

CELLS = [("full", "alr"), ("full", "ilr"), ("sign", "alr"), ("sign", "ilr")]


def arguments(mnist_folder: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(mnist_folder), "--output", str(output), "--batch-size", "48",
            "--epochs", "2", "--seeds", "3", *more]  # fmt: skip


def curves(output: Path) -> list[dict[str, str]]:
    with (output / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def never(argv: Any) -> None:
    raise AssertionError(f"trained again: {argv}")


def test_a_table_of_finished_runs(
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "ablation"
    assert ablation.main(arguments(mnist_folder, output)) == 0
    first = capsys.readouterr()
    assert first.out.startswith("gradient  rate  test top-1, %")
    assert "backend:" not in first.out and first.err.count("backend:") == 4

    rows = curves(output)
    assert list(rows[0]) == ["gradient", "rate", "seed", "epoch", "train_loss", "train_top1",
                             "test_loss", "test_top1"]  # fmt: skip
    found = [(row["gradient"], row["rate"], row["seed"], row["epoch"]) for row in rows]
    assert found == [(*cell, "3", epoch) for cell in CELLS for epoch in ("1", "2")]
    entries = json.loads((output / "ablation.json").read_text())
    for entry, cell in zip(entries, CELLS, strict=True):
        folder = output / f"{cell[0]}-{cell[1]}-3"
        saved = json.loads((folder / "arguments.json").read_text())
        assert (saved["gradient"], saved["rate"], saved["seed"]) == (*cell, 3)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert entry["test.top1"] == metrics["test.top1"] == entry["runs"]["3"]
        last = [row for row in rows if (row["gradient"], row["rate"]) == cell][-1]
        assert float(last["test_loss"]) == metrics["history"][-1]["val/loss"]
        assert float(last["train_top1"]) == metrics["history"][-1]["train/top1"]

    with monkeypatch.context() as patch:
        patch.setattr(mnist, "train", never)
        assert ablation.main(arguments(mnist_folder, output, "--num-threads", "1")) == 0
    assert capsys.readouterr().out == first.out
    assert ablation.main(arguments(mnist_folder, output, "--epochs", "3")) == 1
    assert "--epochs is 3, but the run in" in capsys.readouterr().err


def test_interrupted_runs_are_continued(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ablation"
    before = ablation.ablation(arguments(mnist_folder, output))
    (output / "sign-ilr-3" / "metrics.json").unlink()
    for name in ("metrics.json", "checkpoints/last.ckpt"):
        (output / "full-alr-3" / name).unlink()
    trained: list[list[str]] = []
    train = mnist.train
    monkeypatch.setattr(mnist, "train", lambda argv: (trained.append(argv), train(argv)))
    after = ablation.ablation(arguments(mnist_folder, output))
    assert trained[0][-2:] == ["--output", str(output / "full-alr-3")]
    assert trained[1][-3:] == ["--output", str(output / "sign-ilr-3"), "--resume"]
    assert len(trained) == 2
    assert [cell.top1 for cell in after] == [cell.top1 for cell in before]


def test_runs_that_diverge_are_rows_of_the_table(
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = ImageClassifier.training_step

    def diverge(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        raised = self.hparams["filter_lr_factor"] > 1
        return loss * math.nan if raised and self.current_epoch == 1 else loss

    output = tmp_path / "ablation"
    monkeypatch.setattr(ImageClassifier, "training_step", diverge)
    assert ablation.main(arguments(mnist_folder, output)) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[2] == "diverged" for line in lines[1:5]] == [False, True, False, True]
    assert "the training has diverged" in shown.err
    epochs = [row["epoch"] for row in curves(output) if row["rate"] == "ilr"]
    assert epochs == ["1", "1"]
    assert "nan" in json.loads((output / "full-ilr-3" / "diverged.json").read_text())["error"]

    monkeypatch.setattr(mnist, "train", never)
    assert ablation.main(arguments(mnist_folder, output)) == 0
    assert capsys.readouterr().out == shown.out


def test_means_and_deviations() -> None:
    top1 = {
        ("full", "alr"): [99.0, 99.2, 99.4],
        ("full", "ilr"): [98.5, None, 98.7],
        ("sign", "alr"): [97.0, 97.0, 97.0],
        ("sign", "ilr"): [None, None, None],
    }
    cells = [
        Cell(*key, ablation.PAPER[key], [Trial(seed, v, []) for seed, v in enumerate(values)])
        for key, values in top1.items()
    ]
    lines = [line.split() for line in ablation.table(cells, "10 epochs").splitlines()]
    assert lines[1] == ["full", "alr", "99.20", "0.20", "99.00", "99.20", "99.40", "99.40"]
    assert lines[2] == ["full", "ilr", "98.60", "0.14", "98.50", "diverged", "98.70", "98.99"]
    assert lines[3][2:4] == ["97.00", "0.00"]
    assert lines[6] == ["10", "epochs;", "the", "paper", "has", "50", "epochs."]
    assert lines[4] == ["sign", "ilr", "diverged", "-", *["diverged"] * 3, "97.72"]
    assert " ".join(lines[-1]) == (
        "Best: full alr, 0.60 points above full ilr (deviations 0.20, 0.14)."
    )
    assert ablation.table(cells[:1], "10 epochs").endswith(
        "No two cells to compare: the others diverged."
    )


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--seeds", "-1"], 2, "not a seed"),
        (["--seeds"], 2, "expected at least one argument"),
        (["--data", "/nowhere"], 1, "no MNIST in /nowhere"),
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
    command = arguments(mnist_folder, tmp_path / "ablation", *more)
    assert exit_code(ablation.main, command) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content"),
    [("arguments.json", "{"), ("metrics.json", '{"test.top1": 99.9, "history": []}')],
)
def test_a_run_without_the_arguments_that_it_is_of_is_refused(
    file: str,
    content: str,
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "ablation" / "full-alr-3"
    folder.mkdir(parents=True)
    (folder / file).write_text(content)
    assert ablation.main(arguments(mnist_folder, tmp_path / "ablation")) == 1
    error = capsys.readouterr().err
    assert "cannot read" in error and "full-alr-3/arguments.json" in error
