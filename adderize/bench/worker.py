"""A process that measures: what fails, dies or hangs in it costs the others nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from adderize.errors import AdderizeError, classed


class Worker:
    """Runs calls one after the other in a process of its own.

    A device can be unusable to a process after an error, so a new one follows where a call fails.
    """

    def __init__(self) -> None:
        self._running: tuple[BaseProcess, Connection] | None = None

    def run(self, call: Callable[[], Any], limit: float) -> Any:
        """The result of a call, both picklable.

        Args:
            call: such as a partial of a module's function.
            limit: seconds until the process is stopped, with those that the call has started.

        Raises:
            AdderizeError: the call failed, its process ended, or the time is up.
        """
        process, pipe = self._running = self._running or _started()
        try:
            pipe.send(call)
            if not pipe.poll(limit):
                raise AdderizeError(f"it was stopped after {limit:.0f} s")
            right, result = pipe.recv()
        except (EOFError, OSError) as error:
            process.join(_SECONDS_TO_END)
            self.stop()
            raise AdderizeError(f"its process ended with {process.exitcode}") from error
        except BaseException:
            self.stop()
            raise
        if not right:
            self.stop()
            raise AdderizeError(result)
        return result

    def stop(self) -> None:
        """Ends the process and those that it has started."""
        if self._running is None:
            return
        process, pipe = self._running
        self._running = None
        assert process.pid
        # There is no such group where the process has just begun.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        pipe.close()


_SECONDS_TO_END = 5.0


def _started() -> tuple[BaseProcess, Connection]:
    # Not a fork: a device that is in use here could not be used there.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    return process, here


def _serve(pipe: Connection) -> None:
    # A group of its own, so that it ends with what it starts.
    os.setsid()
    with contextlib.suppress(EOFError):
        while True:
            call = pipe.recv()
            try:
                answer = True, call()
            except Exception as error:
                answer = False, classed(error)
            pipe.send(answer)
