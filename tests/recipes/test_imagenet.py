"""The ImageNet recipe on small photographs: splits, worker processes, resuming, broken files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from adderize import AdderizeError, load_model
from adderize.data import load_photographs
from adderize.data.normalisation import IMAGENET
from adderize.models.by_name import build
from recipes import imagenet
from recipes.batches import ImageFiles
from tests.recipes.runs import killed

ARCH = "tests.recipes.networks:batch_norms"


def arguments(output: Path, data: object = "fake", *more: str) -> list[str]:
    return ["--data", str(data), "--arch", ARCH, "--epochs", "2", "--batch-size", "16",
            "--image-size", "32", "--workers", "0", "--num-threads", "1",
            "--output", str(output), *more]  # fmt: skip


def _photographs(folder: Path, per_class: int = 4) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = generator.integers(30, 60, 2)
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_what_a_run_leaves_scores_what_it_says(tmp_path: Path) -> None:
    metrics = imagenet.train(arguments(tmp_path / "run", "fake", "--workers", "1"))
    assert metrics["steps"] == 10
    assert metrics["converted"] == ["3"]
    model = load_model(build(ARCH), tmp_path / "run" / "model").eval()
    data = ImageFiles(load_photographs("fake"), 16, 0, size=32)
    right = 0
    with torch.inference_mode():
        for images, labels in data.val_dataloader():
            batch, _ = data.on_after_batch_transfer((images, labels), 0)
            right += int((model(batch).argmax(1) == labels).sum())
    assert metrics["test.top1"] == pytest.approx(100 * right / 40, abs=0.01)
    saved = json.loads((tmp_path / "run" / "arguments.json").read_text())
    assert (saved["nesterov"], saved["weight_decay"]) == (True, 1e-4)


def test_resuming_gives_what_the_uninterrupted_run_gives(tmp_path: Path) -> None:
    imagenet.train(arguments(tmp_path / "whole"))
    with killed(1):
        imagenet.train(arguments(tmp_path / "parts"))
    imagenet.train(["--resume", str(tmp_path / "parts"), "--workers", "1"])
    expected, found = (
        load_model(build(ARCH), tmp_path / name / "model").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def _batches(data: ImageFiles, epoch: int) -> list[torch.Tensor]:
    loader: Any = data.training_loader()
    loader.sampler.set_epoch(epoch)
    return [images for images, _ in loader]


def test_crops_follow_from_seed_epoch_and_image(tmp_path: Path) -> None:
    splits = load_photographs(str(_photographs(tmp_path)))
    here = ImageFiles(splits, 4, 0, size=24)
    state = torch.get_rng_state()
    first = _batches(here, 0)
    assert torch.equal(torch.get_rng_state(), state)
    in_workers = _batches(ImageFiles(splits, 4, 0, size=24, workers=2), 0)
    assert all(map(torch.equal, first, in_workers))
    parts = [
        [images for images, _ in ImageFiles(splits, 2, 0, size=24).training_loader(rank, 2)]
        for rank in range(2)
    ]
    for whole, even, odd in zip(first, *parts, strict=True):
        assert torch.equal(whole[0::2], even)
        assert torch.equal(whole[1::2], odd)
    assert not torch.equal(first[0], _batches(here, 1)[0])
    assert not torch.equal(first[0], _batches(ImageFiles(splits, 4, 1, size=24), 0)[0])


def test_validation_is_a_centre_crop(tmp_path: Path) -> None:
    folder = _photographs(tmp_path)
    data = ImageFiles(load_photographs(str(folder)), 4, 0, size=28)
    images, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == [0, 0, 0, 0]
    picture = Image.open(folder / "cat" / "0.png")
    sides = [32 * side // min(picture.size) for side in picture.size]
    resized = picture.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - 28) / 2) for side in resized.size)
    expected = np.array(resized.crop((left, top, left + 28, top + 28)))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)
    normalised, _ = data.on_after_batch_transfer((images, labels), 0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(normalised, (images / 255 - mean) / std)


def test_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = _photographs(tmp_path / "alone")
    splits = load_photographs(str(alone))
    assert splits.num_classes == 3
    assert splits.train is splits.test
    assert "the same images serve for training and validation" in capsys.readouterr().err

    both = tmp_path / "both"
    _photographs(both / "train")
    _photographs(both / "val", per_class=2)
    splits = load_photographs(str(both))
    assert (len(splits.train.labels), len(splits.test.labels)) == (12, 6)
    assert capsys.readouterr().err == ""
    (both / "val" / "emu").rename(both / "val" / "fox")
    with pytest.raises(AdderizeError, match="different class folders"):
        load_photographs(str(both))


def test_parquet_and_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _photographs(tmp_path / "train")
    files = sorted(folder.glob("*/*.png"))
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    table = pyarrow.table({"image": rows, "label": np.arange(12) % 5})
    stored = tmp_path / "parquet" / "data"
    stored.mkdir(parents=True)
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        pyarrow.parquet.write_table(table, stored / f"{name}.parquet")
    splits = load_photographs(str(stored.parent))
    assert splits.num_classes == 5
    expected = np.array(Image.open(files[3]))
    assert np.array_equal(np.array(splits.test.load(3)), expected)

    _photographs(tmp_path / "validation", per_class=1)
    monkeypatch.setenv("ADDERIZE_DATA", str(tmp_path))
    splits = load_photographs("timm:folder")
    assert (len(splits.train.labels), len(splits.test.labels), splits.num_classes) == (12, 3, 3)
    assert np.array_equal(np.array(splits.train.load(3)), expected)
    shutil.rmtree(tmp_path / "validation" / "cat")
    with pytest.raises(AdderizeError, match="other classes for training than for validation"):
        load_photographs("timm:folder")

    pyarrow.parquet.write_table(
        table.set_column(1, "label", [[0] * 12]), stored / "train-00000-of-00001.parquet"
    )
    (stored / "validation-00000-of-00001.parquet").write_bytes(
        (stored / "train-00000-of-00001.parquet").read_bytes()
    )
    with pytest.raises(AdderizeError, match="has one class"):
        load_photographs(str(stored.parent))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_corrupt_photograph_is_named(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _photographs(tmp_path / "data")
    broken = folder / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    command = arguments(tmp_path / "run", folder, "--batch-size", "4", "--workers", workers)
    assert imagenet.main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"recipes.imagenet: {broken} cannot be decoded")


@pytest.mark.parametrize("source", [None, "/nowhere", "timm:torch/nothing"])
def test_no_photographs(source: str | None, tmp_path: Path) -> None:
    with pytest.raises(AdderizeError):
        load_photographs(source)
    with pytest.raises(AdderizeError, match="no class folders"):
        load_photographs(str(tmp_path))
