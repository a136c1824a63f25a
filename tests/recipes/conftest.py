"""A tiny MNIST: learnable stripes in torchvision's raw files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


def _put_back() -> Iterator[None]:
    threads, logger = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """A recipe owns its process: threads and log level are put back for the next test."""
    yield from _put_back()


@pytest.fixture(autouse=True, scope="module")
def _process_settings_of_module() -> Iterator[None]:
    """And for the next file, where a fixture of a module runs one."""
    yield from _put_back()


def _write_idx(path: Path, values: np.ndarray) -> None:
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def _write_mnist(folder: Path) -> Path:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 96), ("t10k", 32)):
        labels = np.arange(count) % 10
        images = generator.integers(0, 100, (count, 28, 28))
        images[np.arange(count), 2 * labels + 4] = 255
        _write_idx(raw / f"{name}-images-idx3-ubyte", images)
        _write_idx(raw / f"{name}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """96 training and 32 test images; class c has a bright row 2 c + 4 on a noisy ground."""
    return _write_mnist(tmp_path / "data")


@pytest.fixture(scope="module")
def kept_mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all tests of a module: nothing may change it."""
    return _write_mnist(tmp_path_factory.mktemp("mnist"))
