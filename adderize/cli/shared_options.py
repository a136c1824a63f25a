"""Command-line options that several commands share: networks, conversions, images, paths."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adderize.arguments import own_path
from adderize.checkpoints import named
from adderize.checkpoints.manifest import MANIFEST, WEIGHTS
from adderize.cli.messages import note
from adderize.data.image_sources import SOURCES
from adderize.errors import AdderizeError, first_line
from adderize.models.by_name import FORMS, options_from
from adderize.tables import FORMATS

_FLAGS = {
    "stem": "convert the layers that read the input too",
    "head": "convert the layers that produce the output too",
    "linear": "convert fully connected layers too",
    "gates": "convert the layers of squeeze-excite gates too",
}
_NAMES = (*_FLAGS, "include", "exclude", "depthwise", "norm")


_CHECKPOINT = (
    "a folder that save_model wrote, hf://owner/name for one on the Hugging Face Hub, a checkpoint "
    "of Lightning or of the AdderNet authors' code, "
)


def add_network_arguments(parser: argparse.ArgumentParser, *, fresh: bool) -> None:
    """`model` and `--arch`, as `adderize.checkpoints.named` takes them.

    Args:
        fresh: an architecture alone is taken too.
    """
    if fresh:
        text = _CHECKPOINT + "a state dict, or an architecture with fresh weights"
    else:
        text = _CHECKPOINT + "or a state dict"
    name = "CHECKPOINT|ARCH" if fresh else "CHECKPOINT"
    parser.add_argument("model", metavar=name, help=text)
    parser.add_argument("--arch", metavar="ARCH", help=f"what the weights belong to: {FORMS}")
    add_arch_options(parser)


def load_network(arguments: argparse.Namespace, **conversion: Any) -> named.Loaded:
    """What :func:`add_network_arguments` names; says what had to be assumed about it."""
    more = arch_options(arguments)
    loaded = named.load(arguments.model, arguments.arch, arch_options=more, **conversion)
    if loaded.note:
        note(loaded.note)
    return loaded


def add_arch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch-options", nargs="+", default=[], metavar="KEY=VALUE",
        help="arguments of the network's builder, such as num_classes=10",
    )  # fmt: skip


def arch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of `--arch-options`, as keyword arguments of the builder."""
    return options_from(arguments.arch_options)


def add_format(parser: argparse.ArgumentParser, forms: Sequence[str] = FORMATS) -> None:
    parser.add_argument("--format", choices=forms, default="table", help="of the result (table)")


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


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--energy", metavar="TABLE",
        help="float32, float16, int32, int8 or a JSON file, for all operations; default: that of "
        "each operation's numbers",
    )  # fmt: skip
    parser.add_argument("--latency", metavar="FILE", help="a JSON file; default: VIA Nano 2000")


def add_image_options(
    parser: argparse.ArgumentParser, what: str, *, limit: int, without: str = ""
) -> None:
    """`--data`, and how its images are read.

    Args:
        what: the images are.
        limit: so many at most by default.
        without: what a command does without them; empty where it needs some.
    """
    text = f"{what}: {SOURCES}" + (f"; without it {without}" if without else "")
    parser.add_argument("--data", metavar="PATH", required=not without, help=text)
    parser.add_argument(
        "--limit", type=int, default=limit, metavar="N", help=f"images at most ({limit})"
    )
    add_input(parser)
    parser.add_argument(
        "--mean", type=numbers, metavar="M,...",
        help="that pixels in [0, 1] are normalised with (default: the model's own; else MNIST's "
        "for one channel, CIFAR-10's for 3x32x32, or ImageNet's)",
    )  # fmt: skip
    parser.add_argument("--std", type=numbers, metavar="S,...", help="likewise")


def add_input(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--input", type=size, metavar="C,H,W", help="default: the model's own")


def add_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layers", choices=("adder", "bnn"), default="adder",
        help="what the convolutions become: adders (default) or XNOR-Net's binary convolutions",
    )  # fmt: skip


def refuse(who: str, options: Sequence[str], instead: str = "leave it out") -> None:
    """Raise AdderizeError for options of which nothing would come."""
    if options:
        raise AdderizeError(f"{who} takes no {' and no '.join(options)}: {instead}")


def output_file(text: str) -> Path:
    """A file that can be written, said before the work and not after it."""
    path = own_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; expected a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} for {path.name}")
    return path


def output_folder(text: str) -> Path:
    """A folder, or where one can be made, said before the work and not after it."""
    path = own_path(text)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"{part} is a file; expected a folder")
    return path


def check_apart(output: Path, *sources: str | None) -> None:
    """
    Raises:
        AdderizeError: a result, a folder or a file, is where the weights are, which would be lost.
    """
    for path in map(own_path, filter(None, sources)):
        saved = named.saved_in(path)
        read = (path, saved, saved / WEIGHTS, saved / MANIFEST)
        replaced = (output, output / WEIGHTS, output / MANIFEST)
        for part, written in itertools.product(read, replaced):
            if part.exists() and written.exists() and written.samefile(part):
                raise AdderizeError(
                    f"the result would replace {part}, which it is made from: give --output "
                    "another path"
                )


def size(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected one such as 3,224,224")
    return numbers


def numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers; expected one such as 0.485,0.456,0.406"
        ) from error
    return values


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def duration(text: str) -> float:
    (seconds, *more) = numbers(text)
    if more or not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise AdderizeError(f"--device {name} cannot be used: {first_line(error)}") from error
    return device
