"""Real data and models, where they are present, and one rule for every test: fixed seeds."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

# Small tensors gain nothing from threads, and threads on a busy machine wait for each other; nor
# do few and small programs gain from a pool of processes that compile them.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
# Whether the compiler knows the processor's instructions is tried in processes that import torch.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
# Modules and tests stay: searches for garbage need not look through them again and again.
gc.disable()

# What takes longest, of few tests or of long ones.
_FIRST = [
    f"tests/{name}.py"
    for name in (
        "ops/test_triton", "recipes/test_cifar", "recipes/test_compiled", "counting/test_counters",
        "ops/test_op", "ops/test_triton_machine_code", "ops/test_triton_channelwise_code",
        "export/test_onnx", "training/test_distributed", "surgery/test_lightning",
        "recipes/test_sharded", "recipes/test_mcu", "recipes/test_figures", "recipes/test_mnist",
        "recipes/test_imagenet", "bench/test_bench", "bench/test_compiling", "cli/test_transfer",
        "integer/test_integer_network", "test_package",
    )
]  # fmt: skip

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Processes of pytest-xdist, which take one file after the other, end together."""
    if not hasattr(config, "workerinput"):
        return
    files = {item: item.nodeid.split("::")[0] for item in items}
    tests = Counter(files.values())
    place = {file: _FIRST.index(file) if file in _FIRST else len(_FIRST) for file in tests}
    items.sort(key=lambda item: (place[files[item]], -tests[files[item]]))


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
