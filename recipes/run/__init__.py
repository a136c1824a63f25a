"""A training run: its command line, its folder, its Trainer."""

from recipes.run.command import command, make_parser
from recipes.run.folder import (
    ARGUMENTS,
    CHECKPOINTS,
    METRICS,
    check_same,
    parse,
    prepare_folder,
    write_json,
)
from recipes.run.run_options import (
    add_arguments,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed,
)
from recipes.run.trainer import choose_device, fit, make_trainer

__all__ = [
    "ARGUMENTS",
    "CHECKPOINTS",
    "METRICS",
    "add_arguments",
    "check_same",
    "choose_device",
    "command",
    "fit",
    "fraction",
    "make_parser",
    "make_trainer",
    "non_negative_float",
    "non_negative_int",
    "parse",
    "positive_float",
    "positive_int",
    "prepare_folder",
    "seed",
    "write_json",
]
