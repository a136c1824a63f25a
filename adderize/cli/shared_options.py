"""Command-line options that several commands share: those of `adderize()`, images, sizes."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adderize.arguments import own_path
from adderize.checkpoints import named
from adderize.checkpoints.manifest import MANIFEST, WEIGHTS
from adderize.cli.messages import note
from adderize.data.image_sources import class_folders, load_labelled
from adderize.data.normalisation import Statistics, usual_statistics
from adderize.errors import AdderizeError, first_line
from adderize.evaluation import device_of, evaluation
from adderize.models.by_name import FORMS, input_size, options_from
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


def add_image_options(parser: argparse.ArgumentParser, *, limit: int) -> None:
    """How the images of `--data` are read; their number is at most `limit` by default."""
    parser.add_argument(
        "--limit", type=int, default=limit, metavar="N", help=f"images at most ({limit})"
    )
    parser.add_argument("--input", type=size, metavar="C,H,W", help="default: the model's own")
    parser.add_argument(
        "--mean", type=numbers, metavar="M,...",
        help="that pixels in [0, 1] are normalised with (default: the model's own; else MNIST's "
        "for one channel, CIFAR-10's for 3x32x32, or ImageNet's)",
    )  # fmt: skip
    parser.add_argument("--std", type=numbers, metavar="S,...", help="likewise")


def images(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str = "test",
    *,
    limit: int | None = None,
    again: bool = False,
) -> Tensor:
    """The images of `--data`, in the form that a network takes; `--limit` of them at most.

    `again`, for a second split: what they are normalised with was said already.
    """
    return _read(arguments, arch, model, split, limit or arguments.limit, again=again)[0]


def labelled_images(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str,
    *,
    limit: int | None = None,
    again: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`images`, and their labels where they have some that the network's outputs can
    be."""
    found, labels = _read(arguments, arch, model, split, limit or arguments.limit, again=again)
    classes = _outputs(model, found[:1])
    if labels is None or classes is None:
        return found, labels
    folders = class_folders(arguments.data, split)
    if folders not in (None, classes) or int(labels.max()) >= classes:
        has = f"{folders} class folders" if folders else f"labels up to {int(labels.max())}"
        note(f"{arguments.data} has {has}, the network {classes} classes: its labels are left out")
        return found, None
    return found, labels


def _outputs(model: nn.Module, image: Tensor) -> int | None:
    """How many logits a network gives; None where it gives something else, or fails."""
    device = device_of(model)
    try:
        with torch.no_grad(), evaluation(model):
            logits = model(image.to(device, copy=True))
    except Exception:  # which is told where the network is used
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _read(
    arguments: argparse.Namespace,
    arch: str,
    model: nn.Module,
    split: str,
    limit: int,
    *,
    again: bool,
) -> tuple[Tensor, Tensor | None]:
    shape = arguments.input or input_size(arch, model)
    statistics = image_statistics(arguments, model, shape)
    found = load_labelled(arguments.data, shape, statistics, limit=limit, split=split)
    if not again and None in (arguments.mean, arguments.std):
        note(f"images {normalisation(statistics)}")
    return found


def image_statistics(
    arguments: argparse.Namespace, model: nn.Module, shape: tuple[int, ...]
) -> Statistics:
    """What images (C, H, W) are normalised with: `--mean` and `--std`, else what is usual."""
    mean, std = arguments.mean, arguments.std
    if mean is None or std is None:
        usual = usual_statistics(model, shape)
        mean, std = mean or usual.mean, std or usual.std
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, shape[0]):
            expected = "1" if shape[0] == 1 else f"1, or {shape[0]}: one for each channel"
            raise AdderizeError(f"{flag} has {len(values)} values; expected {expected}")
    return Statistics(*(values * (shape[0] // len(values)) for values in (mean, std)))


def normalisation(statistics: Statistics) -> str:
    """In words."""
    mean, std = (",".join(f"{value:g}" for value in values) for values in statistics)
    return f"normalised with mean {mean} and deviation {std}"


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
