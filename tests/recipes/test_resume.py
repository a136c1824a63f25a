"""What a run keeps beside its weights, wherever it is cut off: averages, roundings, best scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adderize import adderize, load_model, save_model
from adderize.errors import AdderizeError
from adderize.models.by_name import build
from recipes import cifar
from recipes.image_classifier import ImageClassifier
from tests.recipes.networks import BATCH_NORMS, arguments
from tests.recipes.runs import killed


@pytest.mark.parametrize(
    "more",
    [
        ("--ema", "0.8"),
        ("--shift-norm-terms", "1", "--shift-norm-after", "0.5"),
        ("--ema", "0.8", "--shift-norm-terms", "1", "--shift-norm-after", "0.2"),
        ("--ema", "0.8", "--max-steps", "6"),
    ],
)
def test_a_run_that_lacks_its_end_only_ends_as_it_would_have(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    whole = cifar.train(arguments(folder, *more))
    expected = load_model(build(BATCH_NORMS), folder / "model").state_dict()
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "model")
    resumed = cifar.train(["--resume", str(folder)])
    found = load_model(build(BATCH_NORMS), folder / "model").state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for key in ("test.top1", "test.top1_running_statistics", "steps"):
        assert resumed[key] == whole[key]


@pytest.mark.parametrize("moved", [False, True])
def test_the_best_score_is_known_after_a_resume(
    moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Accuracies fall from epoch to epoch: the first one is the best.
    def falling(module: ImageClassifier) -> None:
        top1 = torch.tensor(50.0 - module.current_epoch)
        module.log("val/top1", top1)

    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", falling)
    measure = ImageClassifier._measure

    def without_top1(module: Any, loss: Any, logits: Any, labels: Any, stage: str) -> None:
        if stage != "val":
            measure(module, loss, logits, labels, stage)
        else:
            module.log("val/loss", loss)

    monkeypatch.setattr(ImageClassifier, "_measure", without_top1)
    folder = tmp_path / "run"
    with killed(1, step=0):
        cifar.train(arguments(folder, "--epochs", "3"))
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
    cifar.train(["--resume", str(folder)])
    epochs = {
        name: torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


@pytest.mark.parametrize(
    "more",
    [("--init", "keep"), ("--layers", "cnn"), ("--init", "keep", "--gradient", "sign")],
)
def test_trained_weights_with_other_adders_than_the_run_has_are_refused(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    """What was exported and resumed had none of them."""
    trained = adderize(build(BATCH_NORMS), stem=True)
    save_model(trained, tmp_path / "trained")
    argv = arguments(tmp_path / "run", "--pretrained", str(tmp_path / "trained"), *more)
    with pytest.raises(AdderizeError, match="other layers than this run: 0"):
        cifar.train(argv)


def test_trained_weights_with_another_gradient_than_the_run_has_are_refused(
    tmp_path: Path,
) -> None:
    save_model(adderize(build(BATCH_NORMS), gradient="sign"), tmp_path / "trained")
    more = ("--pretrained", str(tmp_path / "trained"), "--init", "keep", "--max-steps", "1")
    with pytest.raises(AdderizeError, match="there kind AdderConv2d, gradient sign"):
        cifar.train(arguments(tmp_path / "run", *more))
    cifar.train(arguments(tmp_path / "other", *more, "--gradient", "sign"))


def test_a_preset_names_no_other(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("config: cifar-short\nlr: 0.05\n")
    with pytest.raises(AdderizeError, match=r"unknown options: \['config'\]"):
        cifar.train(["--config", str(preset)])
