"""CIFAR from whatever it is stored in, and how processes share its images."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from adderize import AdderizeError
from adderize.data import load_cifar
from adderize.data.augmentation import CROP_AND_FLIP
from recipes import cifar
from recipes.batches import InMemoryImages
from recipes.batches.sampling import EpochShuffle, InOrder

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def _parquet(folder: Path, columns: dict[str, np.ndarray], name: str = "{}.parquet") -> None:
    folder.mkdir(parents=True)
    rows = []
    for pixels in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    for split in ("train", "test"):
        table = pyarrow.table({"img": rows, **columns})
        pyarrow.parquet.write_table(table, folder / name.format(split))


@pytest.mark.parametrize("place", [".", "cifar10", "data"])
def test_parquet(place: str, tmp_path: Path) -> None:
    _parquet(tmp_path / "here" / place, {"label": np.arange(20) % 10})
    data = load_cifar("cifar10", str(tmp_path / "here"))
    assert torch.equal(data.train.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == [*range(10)] * 2


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    columns = {"fine_label": 5 * np.arange(20), "coarse_label": np.arange(20)}
    _parquet(tmp_path / "cifar100", columns, "{}-00000-of-00001.parquet")
    data = load_cifar("cifar100", str(tmp_path))
    assert data.num_classes == 100
    assert data.train.labels.tolist() == list(range(0, 100, 5))
    with pytest.raises(AdderizeError, match="expected img or image, and label"):
        load_cifar("cifar10", str(tmp_path / "cifar100"))


@pytest.mark.parametrize("source", ["folders", "timm:folder"])
def test_class_folders(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation" if source.startswith("timm:") else "test"):
        for label in range(10):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for half in (label, label + 10):
                Image.fromarray(PIXELS[half]).save(folder / f"{half:02}.png")
    monkeypatch.setenv("ADDERIZE_DATA", str(tmp_path))
    data = load_cifar("cifar10", source if source.startswith("timm:") else None)
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    order = [index for label in range(10) for index in (label, label + 10)]
    assert torch.equal(data.train.images, torch.from_numpy(PIXELS[order]).permute(0, 3, 1, 2))


def test_class_folders_of_another_number_of_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(PIXELS[0]).save(tmp_path / split / name / "0.png")
    with pytest.raises(AdderizeError, match="has 3 class folders; cifar100 has 100"):
        load_cifar("cifar100", str(tmp_path))


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_torchvisions_folder_or_what_holds_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)).reshape(20, -1)
    for name in (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"):
        content = {"data": rows, "labels": [index % 10 for index in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"abcdefghij"]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_cifar("cifar10", str(tmp_path / place))
    assert torch.equal(data.test.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == [*range(10)] * 10


def test_broken_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cifar10"
    _parquet(folder, {"label": np.arange(20)})
    with pytest.raises(AdderizeError, match=r"labels must be in 0\.\.9"):
        load_cifar("cifar10", str(tmp_path))
    file = folder / "train.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert cifar.main(["--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert f"cannot read {file} as a parquet file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    file.unlink()
    with pytest.raises(AdderizeError, match=r"no train\*\.parquet"):
        load_cifar("cifar10", str(tmp_path))
    (tmp_path / "other" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(AdderizeError, match="cannot read cifar10 in"):
        load_cifar("cifar10", str(tmp_path / "other"))
    with pytest.raises(AdderizeError, match="timm cannot create"):
        load_cifar("cifar10", "timm:torch/nothing")


@pytest.mark.parametrize(("size", "processes"), [(48, 2), (50, 2), (53, 3), (49, 4)])
def test_processes_share_one_shuffle(size: int, processes: int) -> None:
    parts = [list(EpochShuffle(size, 4, 7, rank, processes)) for rank in range(processes)]
    whole = list(EpochShuffle(size, 4 * processes, 7))
    assert {len(part) for part in parts} == {len(EpochShuffle(size, 4, 7, 0, processes))}
    for step, batches in enumerate(zip(*parts, strict=True)):
        indices = [indices for _, indices in batches]
        assert len({len(found) for found in indices}) == 1
        together = sorted(torch.cat(indices).tolist())
        expected = whole[step][1].tolist()
        assert set(together) <= set(expected)
        assert len(expected) - len(together) < processes
    ordered = [index for r in range(processes) for _, b in InOrder(size, 4, r, processes)
               for index in b.tolist()]  # fmt: skip
    assert sorted(ordered) == list(range(size))


def test_crops_follow_from_seed_epoch_and_image() -> None:
    data = load_cifar("cifar10", "fake")

    def images(seed: int, epoch: int, batch_size: int, rank: int = 0, of: int = 1) -> torch.Tensor:
        module = InMemoryImages(data, batch_size, seed, augment=CROP_AND_FLIP)
        loader = module.training_loader(rank, of)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return module.on_after_batch_transfer(next(iter(loader)), 0)[0]

    first = images(0, 0, 32)
    assert torch.equal(first, images(0, 0, 32))
    assert torch.equal(first[1::2], images(0, 0, 16, 1, 2))
    assert not torch.equal(first, images(0, 1, 32))
    assert not torch.equal(first, images(1, 0, 32))
