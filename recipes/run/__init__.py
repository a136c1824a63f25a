"""A training run: its command line, its folder, its Trainer."""

from recipes.run.command import command, make_parser
from recipes.run.folder import (
    ARGUMENTS,
    CHECKPOINTS,
    LAST,
    METRICS,
    check_same,
    continued,
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
    share,
)
from recipes.run.stops import named_stops
from recipes.run.trainer import choose_device, fit, make_trainer

__all__ = [
    "ARGUMENTS",
    "CHECKPOINTS",
    "LAST",
    "METRICS",
    "add_arguments",
    "check_same",
    "choose_device",
    "command",
    "continued",
    "fit",
    "fraction",
    "make_parser",
    "make_trainer",
    "named_stops",
    "non_negative_float",
    "non_negative_int",
    "parse",
    "positive_float",
    "positive_int",
    "prepare_folder",
    "seed",
    "share",
    "write_json",
]
