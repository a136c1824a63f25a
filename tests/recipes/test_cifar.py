"""The CIFAR recipe on small images: results, options, resuming, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from huggingface_hub import ModelCard
from torch.multiprocessing import ProcessExitedException

from adderize import AdderConv2d, BinaryConv2d, load_model
from adderize.data import load_cifar
from adderize.integer import multiplication_free
from adderize.models.by_name import build
from recipes import cifar, trained_start
from recipes.image_classifier import ImageClassifier
from recipes.run import parse
from tests import ranks
from tests.recipes.networks import BATCH_NORMS, GROUP_NORMS, arguments
from tests.recipes.runs import exit_code, killed, killed_by_signal

ROOT = Path(__file__).parents[2]
TIMES = ("seconds_per_epoch", "images_per_second", "peak_memory_mb")


@pytest.mark.parametrize(
    ("layers", "kind"), [("adder", AdderConv2d), ("bnn", BinaryConv2d), ("cnn", torch.nn.Conv2d)]
)
def test_what_a_run_leaves_scores_what_it_says(layers: str, kind: type, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = cifar.train(arguments(folder, "--layers", layers))
    assert metrics["layers"] == layers
    assert metrics["converted"] == ([] if layers == "cnn" else ["3"])
    assert metrics["steps"] == 8
    assert metrics == json.loads((folder / "metrics.json").read_text())
    model = load_model(build(BATCH_NORMS), folder / "model").eval()
    assert type(model[3]) is kind
    data = load_cifar("cifar10", "fake")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    with torch.inference_mode():
        logits = model((data.test.images / 255 - mean) / std)
    best = logits.topk(5).indices == data.test.labels[:, None]
    top1, top5 = (100 * best[:, :k].any(1).double().mean().item() for k in (1, 5))
    assert metrics["test.top1"] == pytest.approx(top1, abs=0.01)
    assert metrics["test.top5"] == pytest.approx(top5, abs=0.01)
    card = (folder / "model" / "README.md").read_text()
    assert f"| test top-1, % | {metrics['test.top1']:.2f} |" in card
    assert "--data fake --arch" in card
    data = ModelCard(card).data
    (result,) = [r for r in data.eval_results or () if r.metric_type == "accuracy"]
    assert result.metric_value == pytest.approx(metrics["test.top1"] / 100)
    assert data.library_name == "adderize" and data.base_model is None
    assert "| multiplications |" in card


def test_the_pattern_of_the_fake_images_is_learned(tmp_path: Path) -> None:
    more = ("--epochs", "12", "--batch-size", "32", "--no-augment", "--layers", "cnn")
    metrics = cifar.train(arguments(tmp_path / "run", *more, arch="tests.recipes.networks:flat"))
    assert metrics["test.top1"] > 60


@pytest.mark.parametrize(
    "more",
    [
        ("--layers", "adder", "--arch-options", "dropout=0.5"),
        ("--layers", "adder", "--ema", "0.8", "--accumulate", "3", "--clip", "1"),
        ("--layers", "bnn", "--schedule", "step", "--warmup-epochs", "1", "--label-smoothing=0.1"),
    ],
)
def test_resuming_gives_what_the_uninterrupted_run_gives(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    more = ("--epochs", "4", *more)
    whole = cifar.train(arguments(tmp_path / "whole", *more))
    with killed(2):
        cifar.train(arguments(tmp_path / "parts", *more))
    parts = cifar.train(["--resume", str(tmp_path / "parts")])
    _same_runs(tmp_path / "whole", whole, tmp_path / "parts", parts)


def _same_runs(first: Path, one: dict[str, Any], second: Path, other: dict[str, Any]) -> None:
    expected, found = (
        load_model(build(BATCH_NORMS), folder / "model").state_dict() for folder in (first, second)
    )
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for metrics in (one, other):
        for key in TIMES:
            metrics.pop(key)
        for row in metrics["history"]:
            row.pop("images/s")
    assert one == other


def test_resuming_after_kill_9(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        ranks.run(killed_by_signal, cifar.train, arguments(tmp_path / "parts"), ranks=1)
    parts = cifar.train(["--resume", str(tmp_path / "parts")])
    whole = cifar.train(arguments(tmp_path / "whole"))
    _same_runs(tmp_path / "whole", whole, tmp_path / "parts", parts)


def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """As a command, which starts the second process itself."""

    def train(arguments: list[str]) -> None:
        command = [sys.executable, "-m", "recipes.cifar", *arguments]
        environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK")}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("backend: ") == 1

    _compare_processes(tmp_path, "fake", train)


@pytest.mark.shared
def test_two_processes_on_real_images(data_folder: Path, tmp_path: Path) -> None:
    for split, count in (("train", 512), ("test", 128)):
        table = pyarrow.parquet.read_table(data_folder / "cifar10" / f"{split}.parquet")
        pyarrow.parquet.write_table(table.slice(0, count), tmp_path / f"{split}.parquet")
    _compare_processes(tmp_path, str(tmp_path), partial(ranks.train, cifar.train))


def _compare_processes(tmp_path: Path, data: str, train: Callable[[list[str]], None]) -> None:
    more = ("--layers", "adder", "--epochs", "3", "--data", data)
    two = ("--batch-size", "32", "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu")
    train(arguments(tmp_path / "two", *more, *two, arch=GROUP_NORMS))
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    one = cifar.train(arguments(tmp_path / "one", *more, arch=GROUP_NORMS))
    assert two["steps"] == one["steps"] >= 12
    for row, expected in zip(two["history"], one["history"], strict=True):
        for key in ("train/loss", "val/loss"):
            assert row[key] == pytest.approx(expected[key], abs=2e-4)
        # Two images of 128 may change sides by rounding.
        for key in ("train/top1", "val/top1"):
            assert row[key] == pytest.approx(expected[key], abs=1.6)
    expected, found = (
        load_model(build(GROUP_NORMS), tmp_path / name / "model").state_dict()
        for name in ("one", "two")
    )
    for key in expected:
        assert (found[key] - expected[key]).norm() < 0.01 * expected[key].norm() + 1e-3


def test_the_average_is_validated_saved_and_exported(tmp_path: Path) -> None:
    cifar.train(arguments(tmp_path / "run", "--ema", "0.9"))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    exported = load_model(build(BATCH_NORMS), tmp_path / "run" / "model").state_dict()
    assert torch.equal(exported["3.weight"], average["model.3.weight"])
    assert not torch.equal(exported["3.weight"], current["model.3.weight"])


def test_presets_lie_below_the_command_line(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("epochs: 1\nlr: 0.05\nmilestones: [0.2, 0.4]\nnesterov: true\nema: null\n")
    command = arguments(tmp_path / "run", "--config", str(preset), "--lr", "0.07", "--max-steps=1")
    command[command.index("--epochs") : command.index("--epochs") + 2] = []
    cifar.train(command)
    saved = json.loads((tmp_path / "run" / "arguments.json").read_text())
    assert (saved["epochs"], saved["lr"], saved["nesterov"]) == (1, 0.07, True)
    assert saved["milestones"] == [0.2, 0.4]
    hyperparameters = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)[
        "hyper_parameters"
    ]
    assert hyperparameters["schedule"]["milestones"] == [0.2, 0.4]
    assert hyperparameters["lr"] == 0.07


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("epoch: 3", 1, "unknown options: ['epoch']"),
        ("[1, 2]", 1, "unknown options: [1, 2]"),
        ("epochs: [", 1, "cannot read --config"),
        ("epochs: none", 2, "argument --epochs"),
        ("layers: adders", 2, "argument --layers"),
        ("help: true", 1, "unknown options: ['help']"),
        ("recalibrate: false", 1, "mine.yaml: recalibrate is False; see --help"),
        ("arch_options: {shortcut: A}", 1, "mine.yaml: arch_options is {'shortcut': 'A'}"),
        ("milestones: [0.2, [0.3]]", 1, "mine.yaml: milestones is [0.2, [0.3]]"),
    ],
)
def test_wrong_presets(
    text: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    assert exit_code(cifar.main, ["--config", str(preset)]) == code
    assert message in capsys.readouterr().err


def test_presets_switch_options_off(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("fast_dev_run: false\ncompile: false\nnesterov: false\naugment: true\nema:\n")
    found = parse(cifar._parser(), ["--config", str(preset)])
    assert (found.fast_dev_run, found.compile, found.nesterov) == (False, None, False)
    assert (found.augment, found.ema) == (True, None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config", "paper"], "cannot read --config paper"),
        (["--ema", "0.9", "--strategy", "fsdp"], "--ema cannot average sharded weights"),
        (["--arch-options", "depth"], "'depth' is not KEY=VALUE"),
        (["--arch-options", "depth=8"], "cannot call"),
        (["--pretrained", "/nowhere", "--init", "rescale"], "there is no file /nowhere"),
        (["--pretrained", "/nowhere"], "use --init rescale"),
        (["--transfer", "match"], "--transfer match needs a trained network: --pretrained"),
        (["--transfer", "match", "--layers", "cnn"], "--transfer is for --layers adder"),
        (["--transfer", "match", "--pretrained", "/nowhere"], "there is no file /nowhere"),
        (
            ["--shift-norm-terms", "2", "--layers", "cnn"],
            "--shift-norm-terms is for --layers adder",
        ),
        (["--momentum", "0", "--nesterov"], "--nesterov needs a --momentum above 0"),
        (["--kd-teacher", "nowhere"], "nowhere is not a usable teacher: unknown model"),
        (["--data", "/nowhere"], "no cifar10 in /nowhere"),
    ],
)
def test_wrong_arguments(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cifar.main(arguments(tmp_path / "run", *more)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("terms", [1, 2])
def test_norms_trained_as_shifts_lose_nothing(terms: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = ("--shift-norm-terms", str(terms), "--shift-norm-after", "0.5")
    metrics = cifar.train(arguments(folder, *more))
    model = load_model(build(BATCH_NORMS), folder / "model").eval()
    free = multiplication_free(model, norm_terms=terms, filter_terms=24)
    data = load_cifar("cifar10", "fake")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    with torch.inference_mode():
        best = free((data.test.images / 255 - mean) / std).argmax(1)
    top1 = 100 * (best == data.test.labels).double().mean().item()
    assert metrics["test.top1"] == pytest.approx(top1, abs=0.01)


def test_a_fast_run_leaves_no_checkpoints(tmp_path: Path) -> None:
    metrics = cifar.train(arguments(tmp_path / "run", "--fast-dev-run"))
    assert metrics["steps"] == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "logs").exists()


def test_a_trained_cnn_as_start_and_as_teacher(tmp_path: Path) -> None:
    cnn = tmp_path / "cnn"
    cifar.train(arguments(cnn, "--layers", "cnn"))
    trained = load_model(build(BATCH_NORMS), cnn / "model")
    path = tmp_path / "trained.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
    for source in (str(path), str(cnn)):
        module = ImageClassifier(BATCH_NORMS, 10, conversion={"init": "rescale"}, pretrained=source)
        filters, start = trained[3].weight.detach(), module.model[3].weight.detach()
        torch.testing.assert_close(start, 8 * filters / filters.std(), rtol=1e-3, atol=1e-5)
        assert torch.equal(module.model[9].weight, trained[9].weight)

    for number, teacher in enumerate((str(path), str(cnn))):
        student = tmp_path / f"student{number}"
        more = ("--kd-teacher", teacher, "--kd-temperature", "2", "--max-steps", "2")
        cifar.train(arguments(student, *more))
        checkpoint = torch.load(student / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"].get("distillation") is None
        module = ImageClassifier.load_from_checkpoint(student / "checkpoints" / "last.ckpt")
        assert module.state_dict().keys() == checkpoint["state_dict"].keys()
    plain = cifar.train(arguments(tmp_path / "plain", "--max-steps", "2"))
    taught = json.loads((tmp_path / "student0" / "metrics.json").read_text())
    assert taught["history"][0]["train/loss"] != plain["history"][0]["train/loss"]


@pytest.mark.parametrize("transfer", ["rescale", "match", "reconstruct"])
def test_a_trained_cnn_carried_over(
    transfer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cnn, run = tmp_path / "cnn", tmp_path / "run"
    cifar.train(arguments(cnn, "--layers", "cnn"))
    capsys.readouterr()
    reconstruct = partial(trained_start.reconstruct, steps=3)
    monkeypatch.setattr(trained_start, "reconstruct", reconstruct)
    more = ("--transfer", transfer, "--pretrained", str(cnn), "--max-steps", "2")
    cifar.train(arguments(run, *more))
    reported = "correlation with the teacher" in capsys.readouterr().out
    assert reported == (transfer != "rescale")
    module = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    adders = [m for m in module.modules() if isinstance(m, AdderConv2d)]
    expected = "full" if transfer == "rescale" else "sign_input"
    assert adders and all(layer.gradient == expected for layer in adders)
    filters = load_model(build(BATCH_NORMS), cnn / "model")[3].weight
    start = 8 * filters / filters.std(correction=0)
    near = (adders[0].weight - start).abs().mean() < 1
    assert near == (transfer == "rescale")


def test_metrics_are_named_in_an_epochs_first_step_whichever_batch_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a resume in the middle of an epoch it is not the first batch."""
    module, named = ImageClassifier(BATCH_NORMS, 10), list[str]()
    monkeypatch.setattr(module, "log", lambda name, *values, **options: named.append(name))
    batch = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    names = ["train/loss", "train/top1", "train/top5"]
    module.training_step(batch, 7)
    module.training_step(batch, 8)
    assert named == names
    module.on_train_epoch_start()
    module.training_step(batch, 0)
    assert named == 2 * names
    losses = [
        float(module.losses["train/loss"].compute()),
        float(module.training_step(batch, 1).detach()),
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
