"""CIFAR-10 and CIFAR-100 by the protocol of the AdderNet paper (CVPR 2020, section 4.2).

python -m recipes.cifar --dataset cifar10 --arch resnet20 --layers adder     91.84 % in the paper
python -m recipes.cifar --dataset cifar10 --arch resnet20 --layers cnn       92.25 % in the paper
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from adderize.data.augmentation import CROP_AND_FLIP
from adderize.data.cifar import CLASSES, load_cifar
from recipes import classifier, run
from recipes.batches import InMemoryImages


def _parser() -> argparse.ArgumentParser:
    parser = run.make_parser("cifar", __doc__, allow_abbrev=False)
    parser.add_argument("--dataset", choices=tuple(CLASSES), default="cifar10")
    parser.add_argument(
        "--data",
        metavar="DIR|timm:NAME|fake[:N]",
        help="folder with parquet files, torchvision's files or class folders; a data set of "
        "timm's; a few random images, or N of them (default: $ADDERIZE_DATA, or else a download "
        "into ./data)",
    )
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="random crops with a padding of 4, and flips",
    )
    parser.add_argument(
        "--data-on-device",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="copy the images to the training's device first, and augment all of an epoch there "
        "before its first step (500 MB); the batches are the same",
    )
    classifier.add_arguments(parser, config="cifar")
    return parser


def _load(arguments: argparse.Namespace) -> InMemoryImages:
    return InMemoryImages(
        load_cifar(arguments.dataset, arguments.data),
        arguments.batch_size,
        arguments.seed,
        augment=CROP_AND_FLIP if arguments.augment else None,
        channels_last=arguments.channels_last,
        on_device=arguments.data_on_device,
    )


def train(argv: Sequence[str] | None = None) -> dict[str, object]:
    """One run from the command line's arguments; the contents of its metrics.json.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    return classifier.train(run.parse(_parser(), argv), "cifar", _load)


main = run.command("cifar", train)


if __name__ == "__main__":
    sys.exit(main())
