"""Runs that die, and commands that end with an exit code, in the process of the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from lightning.pytorch import Callback

from recipes.run import trainer


@contextmanager
def killed(epoch: int, step: int = 1) -> Iterator[None]:
    """A run of any recipe dies before that step of an epoch."""

    class Killed(Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if (trainer.current_epoch, batch_idx) == (epoch, step):
                raise KeyError("killed")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError, match="killed"):
        patch.setattr(trainer, "StopOnBrokenLoss", Killed)
        yield


def killed_by_signal(rank: int, train: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """The process, which is not that of the tests, ends in its second epoch without a word."""

    class Killed(Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 1):
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.StopOnBrokenLoss = Killed
    train(arguments)


def exit_code(main: Callable[[Sequence[str]], int], command: Sequence[str]) -> Any:
    """What the process would end with, whether a parser or the command itself says so."""
    try:
        return main(command)
    except SystemExit as exit:
        return exit.code
