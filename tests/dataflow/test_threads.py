"""Conversions in several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from adderize import adderize
from tests.surgery.test_adderize import adder_names, small_cnn

MEETING = threading.Barrier(2)


class Meets(nn.Module):
    """A network whose forward waits a moment for that of another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_cnn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            MEETING.wait(timeout=0.3)
        except threading.BrokenBarrierError:
            return self.net(x)
        raise AssertionError("two models are traced at once")


def test_conversions_wait_for_one_another() -> None:
    patched = ("__call__", "__getattr__")
    before = [vars(nn.Module)[name] for name in patched]
    models = [Meets(), Meets()]
    with ThreadPoolExecutor(2) as threads:
        converted = [*threads.map(adderize, models)]
    assert [adder_names(model) for model in converted] == [["net.1.0", "net.2.0"]] * 2
    assert [vars(nn.Module)[name] for name in patched] == before
