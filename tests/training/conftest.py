"""Tiny networks run fastest on one thread, above all beside other processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.optim import optimizer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    yield
    assert not optimizer._global_optimizer_pre_hooks
