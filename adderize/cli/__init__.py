"""The command line: `adderize COMMAND ...`. Each command is a module of this folder.

A command module has `HELP` (one line), `EXAMPLES` (commands as a user types them),
`configure(parser)` and `run(arguments) -> exit code`. Results go to stdout, everything else to
stderr: progress, which only a terminal sees, notes, and errors of one line each.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from adderize import __version__
from adderize.cli.messages import failed, one_line_warnings
from adderize.errors import AdderizeError
from adderize.progress import showing

_DESCRIPTION = (
    "Adder networks: plan, measure, transfer, quantize and export them. They are trained in Python."
)
_COMPLETION = (
    "shell completion: pip install 'adderize[completion]', then in the shell's start file\n"
    '  eval "$(register-python-argcomplete adderize)"'
)
COMMANDS = (
    "plan", "count", "inspect", "report", "transfer", "quantize", "export", "doctor", "bench",
)  # fmt: skip
_WRONG, _UNEXPECTED, _INTERRUPTED = 1, 70, 130
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 on a user's mistake, 2 on wrong usage, 70 on an error of the program itself,
        130 where the user interrupts it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    _complete()
    try:
        with _stopped_at_once():
            arguments = _parser(argv).parse_args(argv)
        with one_line_warnings(), showing():
            code: int = arguments.run(arguments)
    except SystemExit:  # of argparse, which has printed what was asked for or what is wrong
        if code := _flushed(0, debug=debug):
            return code
        raise
    except AdderizeError as error:
        code = failed(error, _WRONG, debug=debug)
    except BrokenPipeError:  # the reader (`| head`) closed early
        code = 0
    except KeyboardInterrupt as stop:
        code = failed(stop, _INTERRUPTED, debug=debug)
    except OSError as error:
        told, code = (_unwritten(error), _WRONG) if error.errno in _FULL else (error, _UNEXPECTED)
        code = failed(told, code, debug=debug)
    except Exception as error:
        code = failed(error, _UNEXPECTED, debug=debug)
    return _flushed(code, debug=debug)


def _flushed(code: int, *, debug: bool) -> int:
    """The code, or another one where what was printed cannot be written."""
    try:
        if sys.stdout is not None:  # as the shell has it behind `>&-`
            sys.stdout.flush()
    except OSError as error:
        # Or else the interpreter fails at its own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            return code or failed(_unwritten(error), _WRONG, debug=debug)
    return code


def _unwritten(error: OSError) -> AdderizeError:
    unwritten = AdderizeError(f"cannot write {error.filename or 'the result'}: {error.strerror}")
    unwritten.__cause__ = error
    return unwritten


@contextlib.contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Ctrl-C ends the process while torch is imported, which takes seconds.

    Torch swallows a KeyboardInterrupt while it imports NumPy, and goes on with half of that.
    """
    alone = threading.current_thread() is threading.main_thread() and "torch" not in sys.modules
    if not alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adderize", description=_DESCRIPTION, epilog=_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"adderize {__version__}")
    parser.add_argument("--debug", action="store_true", help=_DEBUG)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only the command at hand is imported in full, so that each one starts fast.
    named = [word for word in argv if word in COMMANDS][:1]
    for name in named or COMMANDS:
        module = importlib.import_module(f"adderize.cli.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, epilog=_examples(module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.configure(command)
        command.set_defaults(run=module.run)
        _add_debug(command)
    return parser


_DEBUG = "show the traceback of an error"


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """The option behind the command's name too, and behind those of its parts."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                _add_debug(part)


def _examples(lines: Sequence[str]) -> str:
    return "\n  ".join(["examples:", *lines])


def _complete() -> None:
    """Answer a shell that asks how a line could go on, and exit; do nothing otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "-1"))]
    words = line.split()
    if not line[-1:].isspace():
        del words[-1:]
    named = [word for word in words[1:] if word in COMMANDS]
    argcomplete.autocomplete(_parser(words) if named else _names_only())


def _names_only() -> argparse.ArgumentParser:
    """What there is to complete before a command is named, without importing any."""
    parser = argparse.ArgumentParser(prog="adderize")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--debug", action="store_true", help=_DEBUG)
    commands = parser.add_subparsers()
    for name in COMMANDS:
        commands.add_parser(name)
    return parser
