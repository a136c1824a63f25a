"""Real data and models, where they are present, and one rule for every test: fixed seeds."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

# Small tensors gain nothing from threads, and threads on a busy machine wait for each other; nor
# do few and small programs gain from a pool of processes that compile them.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
# Modules and tests stay: searches for garbage need not look through them again and again.
gc.disable()

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, _BESIDE / name))
    if not folder.is_dir():
        pytest.skip(f"no {name}: set {variable} to the folder")
    return folder


@pytest.fixture
def data_folder() -> Path:
    """MNIST in torchvision's layout, cifar10/{train,test}.parquet, imagenet-sample/."""
    return _folder("ADDERIZE_DATA", "data")


@pytest.fixture
def models_folder() -> Path:
    """The authors' ResNet-20 checkpoint and a convolutional one."""
    return _folder("ADDERIZE_MODELS", "models")
