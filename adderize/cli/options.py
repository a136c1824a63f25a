"""Command-line options that several commands share: those of `adderize()`, and sizes."""

from __future__ import annotations

import argparse
from typing import Any

_FLAGS = {
    "stem": "convert the layers that read the input too",
    "head": "convert the layers that produce the output too",
    "linear": "convert fully connected layers too",
    "gates": "convert the layers of squeeze-excite gates too",
}
_NAMES = (*_FLAGS, "include", "exclude", "depthwise", "norm")


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conversion")
    for name in ("include", "exclude"):
        what = "only layers" if name == "include" else "no layers"
        group.add_argument(
            f"--{name}", action="append", metavar="PATTERN", default=argparse.SUPPRESS,
            help=f"{what} whose name matches, such as 'layer1.*'; may be repeated",
        )  # fmt: skip
    for name, text in _FLAGS.items():
        group.add_argument(
            f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text
        )  # fmt: skip
    group.add_argument(
        "--no-depthwise", dest="depthwise", action="store_false", default=argparse.SUPPRESS,
        help="keep depthwise convolutions",
    )  # fmt: skip
    group.add_argument(
        "--norm", choices=("insert", "require", "ignore"), default=argparse.SUPPRESS,
        help="where a layer lacks the trainable norm it needs (default: insert one)",
    )  # fmt: skip


def conversion_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, as keyword arguments of `adderize()`."""
    return {name: value for name, value in vars(arguments).items() if name in _NAMES}


def size(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected one such as 3,224,224")
    return numbers


def numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers; expected one such as 0.485,0.456,0.406"
        ) from error
    return values
