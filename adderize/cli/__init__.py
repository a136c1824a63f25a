"""The command line: `adderize COMMAND ...`. Each command is a module of this folder.

A command module has `HELP` (one line), `configure(parser)` and `run(arguments) -> exit code`.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from adderize import __version__
from adderize.errors import AdderizeError

_DESCRIPTION = "Adder networks: what is converted, what it costs, how fast it runs."
COMMANDS = ("plan", "count", "inspect", "transfer", "quantize", "doctor", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 on a user's mistake, 2 on wrong usage."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(argv).parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except AdderizeError as error:
        print(f"adderize: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) closed early; keep the interpreter from failing at its final flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adderize", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"adderize {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only the command at hand is imported in full, so that each one starts fast.
    named = [word for word in argv if word in COMMANDS][:1]
    for name in named or COMMANDS:
        module = importlib.import_module(f"adderize.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser
