"""Images from every kind of source, and what is wrong with the others."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adderize import AdderizeError
from adderize.data import load_mnist, load_photographs
from adderize.data.image_sources import class_folders, load_labelled
from adderize.data.normalisation import CIFAR10, IMAGENET, MNIST, Statistics, usual_statistics

PLAIN = Statistics((0.0,), (1.0,))


def load_images(*source: Any, **options: Any) -> Tensor:
    return load_labelled(*source, **options)[0]


def colours(count: int, height: int = 4, width: int = 4) -> np.ndarray:
    """(N, H, W, 3): image i has red = 2 i everywhere, and noise in the other channels."""
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[..., 0] = 2 * np.arange(count)[:, None, None]
    return images


def write_parquet(path: Path, images: np.ndarray, column: str = "img") -> None:
    rows = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    table = pyarrow.table({column: rows, "label": list(range(len(rows)))})
    pyarrow.parquet.write_table(table, path)


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def expected(images: np.ndarray, statistics: Statistics) -> torch.Tensor:
    pixels = torch.from_numpy(images / 255.0)
    normalised = (pixels - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)
    return normalised.permute(0, 3, 1, 2).float()


def test_a_folder_of_files_evenly_spaced(tmp_path: Path) -> None:
    images = colours(10)
    for index, image in enumerate(images):
        folder = tmp_path / f"class{index // 4}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.PNG")
    (tmp_path / "labels.txt").write_text("no image")
    found = load_images(tmp_path, (3, 4, 4), IMAGENET, limit=5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(images[::2], IMAGENET))
    assert len(load_images(tmp_path, (3, 4, 4), IMAGENET)) == 10
    assert load_images(tmp_path / "class0" / "1.PNG", (1, 4, 4), MNIST).shape == (1, 1, 4, 4)


def test_parquet_files_and_splits(tmp_path: Path) -> None:
    train, test = colours(6), colours(3)[::-1]
    write_parquet(tmp_path / "train-00000-of-00001.parquet", train)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", test, column="image")
    size = (3, 4, 4)
    torch.testing.assert_close(load_images(tmp_path, size, CIFAR10), expected(test, CIFAR10))
    found = load_images(tmp_path, size, CIFAR10, split="train")
    torch.testing.assert_close(found, expected(train, CIFAR10))
    found = load_images(tmp_path / "train-00000-of-00001.parquet", size, CIFAR10, limit=3)
    torch.testing.assert_close(found, expected(train[::2], CIFAR10))


def test_parquet_files_in_the_folder_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    images = colours(3)
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", images)
    for split in ("train", "test"):
        found = load_images(tmp_path, (3, 4, 4), CIFAR10, split=split)
        torch.testing.assert_close(found, expected(images, CIFAR10))


def test_validation_images_come_before_tests_whose_labels_are_secret(tmp_path: Path) -> None:
    """As of ImageNet on the Hub; folders of images and recipes have this order too."""
    images = colours(4)
    for split in ("train", "test", "validation"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", images[: len(split) // 3])
    assert len(load_images(tmp_path, (3, 4, 4), CIFAR10, split="train")) == 1
    found, labels = load_labelled(tmp_path, (3, 4, 4), CIFAR10)
    torch.testing.assert_close(found, expected(images[:3], CIFAR10))
    assert labels is not None and labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", [".", "data", "plain_text"])
def test_parquet_files_of_one_split_alone(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    images = colours(6)
    for part in range(3):
        file = tmp_path / place / f"train-0000{part}-of-00003.parquet"
        write_parquet(file, images[2 * part : 2 * part + 2])
    for split in ("train", "test"):
        found = load_images(tmp_path, (3, 4, 4), CIFAR10, split=split)
        torch.testing.assert_close(found, expected(images, CIFAR10))
    # Fewer images than files: some have none that is chosen.
    found = load_images(tmp_path, (3, 4, 4), CIFAR10, limit=2)
    torch.testing.assert_close(found, expected(images[::3], CIFAR10))


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, None, 2], ["cat", "dog", "cat"]])
def test_labels_that_number_no_classes_are_none(labels: list[object], tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", colours(3))
    table = pyarrow.parquet.read_table(tmp_path / "test.parquet")
    table = table.set_column(table.column_names.index("label"), "label", [labels])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    images, found = load_labelled(tmp_path, (3, 4, 4), PLAIN)
    assert len(images) == 3 and found is None
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(
        AdderizeError, match=r"has .* in the column label; expected numbers of classes"
    ):
        load_photographs(str(tmp_path))


def test_idx_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, value in (("train", 51), ("t10k", 255)):
        write_idx(raw / f"{name}-images-idx3-ubyte", np.full((4, 28, 28), value))
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(4))
    assert torch.equal(load_images(tmp_path, (1, 32, 32), PLAIN), torch.ones(4, 1, 32, 32))
    found = load_images(tmp_path, (1, 28, 28), PLAIN, limit=2, split="train")
    torch.testing.assert_close(found, torch.full((2, 1, 28, 28), 0.2))
    with pytest.raises(AdderizeError, match="have 1 channels, but the network takes 3"):
        load_images(tmp_path, (3, 28, 28), PLAIN)
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"broken")
    with pytest.raises(AdderizeError, match="cannot read"):
        load_images(tmp_path, (1, 28, 28), PLAIN)


def test_the_folder_of_idx_files_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("MNIST", "FashionMNIST")):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            write_idx(raw / f"{part}-images-idx3-ubyte", np.full((2, 28, 28), 255 * number))
            write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(2))
        for place in (tmp_path / name, raw):
            found = load_images(place, (1, 28, 28), PLAIN)
            assert torch.equal(found, torch.full((2, 1, 28, 28), float(number)))
        monkeypatch.chdir(tmp_path / name)
        assert load_images(".", (1, 28, 28), PLAIN).mean() == number
        assert class_folders(".") is None
    with pytest.raises(AdderizeError, match=r"holds MNIST and FashionMNIST: name one of them"):
        load_images(tmp_path, (1, 28, 28), PLAIN)
    for place in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        assert load_mnist(str(place), 28).train.images.max() == 0
    with pytest.raises(AdderizeError, match="no MNIST in"):
        load_mnist(str(tmp_path / "FashionMNIST"))


def test_arrays(tmp_path: Path) -> None:
    normalised = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    torch.save(normalised, tmp_path / "x.pt")
    torch.testing.assert_close(
        load_images(tmp_path / "x.pt", (3, 4, 4), IMAGENET), normalised.float()
    )
    images = colours(4)
    np.save(tmp_path / "x.npy", images.transpose(0, 3, 1, 2))
    found = load_images(tmp_path / "x.npy", (3, 4, 4), IMAGENET)
    torch.testing.assert_close(found, expected(images, IMAGENET))
    np.save(tmp_path / "grey.npy", np.full((2, 8, 8), 255, dtype=np.uint8))
    assert torch.equal(load_images(tmp_path / "grey.npy", (1, 4, 4), PLAIN), torch.ones(2, 1, 4, 4))


def test_resized_on_the_shorter_side_and_cropped_at_the_centre(tmp_path: Path) -> None:
    image = np.zeros((8, 32, 3), dtype=np.uint8)
    image[:, 12:20] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    found = load_images(tmp_path, (3, 4, 4), PLAIN)
    assert found.shape == (1, 3, 4, 4)
    assert found[..., 1:3].min() > 0.9
    image[:, 12:20] = 0
    image[:, :12] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert load_images(tmp_path, (3, 4, 4), PLAIN)[..., 1:].max() < 0.2


def test_usual_statistics() -> None:
    model = nn.Identity()
    assert usual_statistics(model, (1, 32, 32)) == MNIST
    assert usual_statistics(model, (3, 32, 32)) == CIFAR10
    assert usual_statistics(model, (3, 224, 224)) == IMAGENET
    with pytest.raises(AdderizeError, match="4 channels"):
        usual_statistics(model, (4, 8, 8))
    model.default_cfg = {"mean": (0.5,), "std": (0.25,)}
    assert usual_statistics(model, (4, 8, 8)) == Statistics((0.5,), (0.25,))
    model.default_cfg = dict(zip(("mean", "std"), IMAGENET, strict=True))
    assert usual_statistics(model, (3, 32, 32)) == IMAGENET
    assert usual_statistics(model, (1, 32, 32)) == MNIST


def test_wrong_sources(tmp_path: Path) -> None:
    def error(name: str, size: tuple[int, ...] = (3, 4, 4), limit: int = 8) -> str:
        with pytest.raises(AdderizeError) as caught:
            load_images(tmp_path / name, size, PLAIN, limit=limit)
        return str(caught.value)

    assert "does not exist" in error("nowhere")
    assert "holds no images" in error(".")
    (tmp_path / "images.zip").write_bytes(b"")
    assert "unknown kind" in error("images.zip")
    for name in ("x.png", "x.parquet", "x.npy", "x.pt"):
        (tmp_path / name).write_bytes(b"broken")
    assert "x.png cannot be decoded" in error("x.png")
    assert "as a parquet file" in error("x.parquet")
    assert "as an array" in error("x.npy") and "as an array" in error("x.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    assert "holds dict" in error("x.pt")
    torch.save(torch.zeros(2, 3, 5, 4), tmp_path / "x.pt")
    assert "are 3x5x4 and normalised; expected 3x4x4" in error("x.pt")
    torch.save(torch.zeros(2, 3, 4, 4, dtype=torch.int64), tmp_path / "x.pt")
    assert "torch.int64" in error("x.pt")
    torch.save(torch.zeros(0, 3, 4, 4), tmp_path / "x.pt")
    assert "holds no images" in error("x.pt")
    write_parquet(tmp_path / "x.parquet", colours(2), column="picture")
    assert "has the columns picture, label" in error("x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"img": [1, 2]}), tmp_path / "x.parquet")
    assert "no encoded images" in error("x.parquet")
    write_parquet(tmp_path / "y.parquet", colours(2))
    assert "x.parquet, y.parquet: name one" in error(".")
    assert "limit is 0" in error("y.parquet", limit=0)
    with pytest.raises(AdderizeError, match="images have"):
        load_images(tmp_path / "y.parquet", (3, 4), PLAIN)
    for wrong in [
        Statistics((0.5, 0.5), (1.0, 1.0)),
        Statistics((0.5,), (0.0,)),
        Statistics((0.5,), (math.nan,)),
        Statistics((0.5,), (58.0,)),
        Statistics((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    ]:
        with pytest.raises(AdderizeError, match="expected 3 of each, of pixels in"):
            load_images(tmp_path / "y.parquet", (3, 4, 4), wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_pixels_as_floats_are_not_taken_for_normalised(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", colours(4).transpose(0, 3, 1, 2).astype(dtype))
    with pytest.raises(AdderizeError, match=r"holds whole numbers up to .*: save pixels"):
        load_images(tmp_path / "x.npy", (3, 4, 4), IMAGENET)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_pixels_up_to_1_are_for_networks_that_take_them(tmp_path: Path, dtype: str) -> None:
    pixels = (colours(100) / 255).transpose(0, 3, 1, 2)
    np.save(tmp_path / "x.npy", pixels.astype(dtype))
    with pytest.raises(AdderizeError, match=r"holds pixels in \[0, 1\] as .* mean 0 and deviation"):
        load_images(tmp_path / "x.npy", (3, 4, 4), IMAGENET)
    found = load_images(tmp_path / "x.npy", (3, 4, 4), PLAIN)
    assert torch.equal(found, torch.from_numpy(pixels[: len(found)].astype(dtype)).float())
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((8, 3, 4, 4)).astype(dtype))
    assert len(load_images(tmp_path / "x.npy", (3, 4, 4), IMAGENET)) == 8


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_pixels_of_more_than_8_bits_are_not_clipped_to_white(tmp_path: Path, dtype: str) -> None:
    Image.fromarray(np.full((4, 4), 300, dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(AdderizeError, match=r"^\S*x.tiff has pixels of mode .*; expected 8"):
        load_images(tmp_path, (3, 4, 4), PLAIN)


def test_class_folders_of_a_split_with_their_labels(tmp_path: Path) -> None:
    images = colours(12)
    for index, image in enumerate(images):
        folder = tmp_path / ("train" if index < 8 else "val") / "abc"[index % 3]
        folder.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(folder / f"{index:02}.png")
    (tmp_path / "train" / ".cache").mkdir()
    found, labels = load_labelled(tmp_path, (3, 4, 4), PLAIN, split="train")
    red = (found[:, 0, 0, 0] * 255 / 2).round().long()
    assert sorted(red.tolist()) == list(range(8))
    assert labels is not None and labels.tolist() == (red % 3).tolist()
    found, labels = load_labelled(tmp_path, (3, 4, 4), PLAIN, limit=2)
    red = (found[:, 0, 0, 0] * 255 / 2).round().long()
    assert labels is not None and labels.tolist() == (red % 3).tolist() and min(red) >= 8
    for file in (tmp_path / "val" / "b").iterdir():
        file.unlink()
    found, labels = load_labelled(tmp_path, (3, 4, 4), PLAIN)
    red = (found[:, 0, 0, 0] * 255 / 2).round().long()
    assert labels is not None and labels.tolist() == (red % 3).tolist() == [0, 2, 2]


def test_labels_of_parquet_files_and_of_digits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", colours(10))
    _, labels = load_labelled(tmp_path, (3, 4, 4), PLAIN, limit=5, split="train")
    assert labels is not None and labels.tolist() == [0, 2, 4, 6, 8]
    raw = tmp_path / "digits" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train", "t10k"):
        write_idx(raw / f"{name}-images-idx3-ubyte", np.zeros((6, 28, 28)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.array([3, 1, 4, 1, 5, 9]))
    _, labels = load_labelled(tmp_path / "digits", (1, 28, 28), MNIST, limit=3)
    assert labels is not None and labels.tolist() == [3, 4, 5]


def test_loose_files_have_no_labels(tmp_path: Path) -> None:
    for index, image in enumerate(colours(3)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    assert load_labelled(tmp_path, (3, 4, 4), PLAIN)[1] is None
