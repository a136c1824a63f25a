"""Runs that are stopped from outside: by Ctrl-C, or by SIGTERM, which job queues send."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from recipes.run.folder import has_checkpoint


class Stopped(SystemExit):
    """A run was stopped; its text says how it goes on, its code is a shell's for the signal."""

    def __init__(self, text: str, number: signal.Signals) -> None:
        super().__init__(text)
        self.code = self.exit_code = 128 + number

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def named_stops(recipe: str, folder: Path) -> Iterator[None]:
    """Turn an interruption into :class:`Stopped`.

    Lightning leaves silently where its messages are off, and with 0 after SIGTERM, as if the run
    were done.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(_after("interrupted", recipe, folder), signal.SIGINT) from stop
    except SIGTERMException as stop:
        raise Stopped(_after("terminated", recipe, folder), signal.SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise Stopped(_after("interrupted", recipe, folder), signal.SIGINT) from stop
        raise


def _after(what: str, recipe: str, folder: Path) -> str:
    if has_checkpoint(folder):
        command = f"python -m recipes.{recipe} --resume {shlex.quote(str(folder))}"
        return f"{what}; continue after the last whole epoch: {command}"
    return f"{what} within the first epoch: {folder} has nothing to go on from, remove it"
