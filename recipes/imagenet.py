"""ImageNet by the protocol of the AdderNet paper (CVPR 2020, section 4.3).

python -m recipes.imagenet --arch resnet18 --layers adder --data DIR     67.0 % in the paper
python -m recipes.imagenet --arch resnet50 --layers cnn --data DIR       76.2 % in the paper
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from adderize.data import load_photographs
from recipes import classifier, run
from recipes.batches.image_files import ImageFiles


def _parser() -> argparse.ArgumentParser:
    parser = run.make_parser("imagenet", __doc__, allow_abbrev=False)
    parser.add_argument(
        "--data",
        metavar="DIR|timm:NAME|fake",
        help="folder with train/ and val/ class folders, parquet files, or class folders only, "
        "which then serve for training and validation; a data set of timm's; random images",
    )
    parser.add_argument(
        "--image-size", type=run.positive_int, default=224, metavar="N", help="side of the crops"
    )
    parser.add_argument(
        "--workers",
        type=run.non_negative_int,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="processes that decode images, of each training process",
    )
    classifier.add_arguments(parser, config="imagenet")
    return parser


def _load(arguments: argparse.Namespace) -> ImageFiles:
    return ImageFiles(
        load_photographs(arguments.data),
        arguments.batch_size,
        arguments.seed,
        size=arguments.image_size,
        workers=arguments.workers,
        channels_last=arguments.channels_last,
    )


def train(argv: Sequence[str] | None = None) -> dict[str, object]:
    """One run from the command line's arguments; the contents of its metrics.json.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    return classifier.train(run.parse(_parser(), argv), "imagenet", _load)


main = run.command("imagenet", train)


if __name__ == "__main__":
    sys.exit(main())
