"""Recipes as commands: ``python -m recipes.NAME``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from adderize.errors import AdderizeError
from recipes.run.stops import Stopped


class Main(Protocol):
    """0 on success, 1 on a user's mistake or a training that diverges; wrong usage exits with 2.

    130 after Ctrl-C, 143 after SIGTERM.
    """

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def make_parser(recipe: str, description: str | None, **more: Any) -> argparse.ArgumentParser:
    """A parser without options yet; the description is the recipe's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m recipes.{recipe}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )


def command(recipe: str, action: Callable[[Sequence[str] | None], object]) -> Main:
    """The `main` of a recipe, which prints errors as one line on stderr.

    Args:
        recipe: its name.
        action: takes the command line's arguments; None for those of the process.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        try:
            action(argv)
        except (AdderizeError, MisconfigurationException) as error:
            message = str(error)
            if message.startswith("Caught "):
                # A worker process of the loader sends its traceback along.
                message = message.strip().splitlines()[-1].partition(": ")[2]
            _say(recipe, message)
            return 1
        except Stopped as stop:
            rank_zero_only(_say)(recipe, str(stop))
            return stop.exit_code
        except KeyboardInterrupt:
            rank_zero_only(_say)(recipe, "interrupted")
            return 128 + signal.SIGINT
        return 0

    return main


def _say(recipe: str, message: str) -> None:
    print(f"recipes.{recipe}: {message}", file=sys.stderr)
