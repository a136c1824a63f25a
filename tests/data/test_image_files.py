"""Folders as people have them: links, hidden files, several data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adderize import AdderizeError
from adderize.data import load_photographs
from adderize.data.image_files import image_files
from adderize.data.image_sources import load_labelled
from adderize.data.normalisation import Statistics

SIZE, PLAIN = (3, 4, 4), Statistics((0.0,), (1.0,))


def write_classes(folder: Path, count: int = 2) -> Path:
    """Images in folders a, b and c, each as red as its number."""
    for label, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((4, 4, 3), label, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def assert_classes(folder: Path, labels: list[int]) -> None:
    """Commands and recipes read every image, with its own label."""
    images, found = load_labelled(folder, SIZE, PLAIN)
    assert found is not None and found.tolist() == labels
    assert (255 * images[:, 0, 0, 0]).round().tolist() == labels
    photographs = load_photographs(str(folder))
    assert list(photographs.train.labels) == labels and photographs.num_classes == 3
    pixels = [int(photographs.train.pixels(index)[0, 0, 0]) for index in range(len(labels))]
    assert pixels == labels


def test_linked_folders_and_files_are_read(tmp_path: Path) -> None:
    stored, linked = write_classes(tmp_path / "stored"), tmp_path / "linked"
    linked.mkdir()
    for name in "ac":
        (linked / name).symlink_to(stored / name)
    (linked / "b").mkdir()
    (linked / "b" / "0.png").symlink_to(stored / "b" / "0.png")
    assert_classes(linked, [0, 0, 1, 2, 2])


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "stored")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    assert_classes(folder, [0, 0, 1, 1, 2, 2])
    assert len(image_files(folder)) == 6


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / ".cache" / "stored")
    checkpoints = folder / ".ipynb_checkpoints"
    checkpoints.mkdir()
    (folder / "a" / "0.png").rename(checkpoints / "0.png")
    (folder / "b" / "._0.png").write_bytes(b"\0\5\x16\7 what macOS keeps beside a file")
    assert_classes(folder, [0, 1, 1, 2, 2])


def test_a_folder_named_like_an_image(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "stored")
    (folder / "c" / "1.png").unlink()
    (folder / "c" / "1.png").mkdir()
    assert_classes(folder, [0, 0, 1, 1, 2])


def test_classes_without_images_are_named_before_a_training(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "stored")
    for file in (folder / "b").iterdir():
        file.unlink()
    with pytest.raises(AdderizeError, match=r"the class folders b in .* have no images"):
        load_photographs(str(folder))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), "has train with folders of images"),
        (("train", "valid"), "has train, valid with folders of images"),
        (("Train", "Val"), "has Train, Val with folders of images"),
        (("set",), "has one class folder, set"),
    ],
)
def test_splits_are_not_taken_for_classes(
    splits: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for name in splits:
        write_classes(tmp_path / name)
    with pytest.raises(AdderizeError, match=message):
        load_photographs(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "stored")
    (folder / "c").rename(folder / "train")
    assert_classes(folder, [0, 0, 1, 1, 2, 2])


def test_an_image_too_large_for_pil_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    with pytest.raises(AdderizeError, match=r"large.png cannot be decoded: Image size"):
        load_labelled(tmp_path, SIZE, PLAIN)
