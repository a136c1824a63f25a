"""What the recipes for image classifiers share: their options, and one training from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from lightning.pytorch import Callback, seed_everything

from adderize import AdaptiveLearningRate, AdderizeError
from adderize.callbacks import ShiftNorms
from adderize.models.by_name import options_from
from adderize.ops.gradients import GRADIENTS
from adderize.training.recalibration import tracking_norms
from recipes import distillation, run, trained_start
from recipes.batches import ImageData
from recipes.compiled import WITH_GRAPHS
from recipes.image_classifier import ImageClassifier
from recipes.results import finish
from recipes.run.run_options import add_config
from recipes.schedules import SCHEDULES

LAYERS = ("adder", "cnn", "bnn")
COMPILE_MODES = ("default", *WITH_GRAPHS)


def add_protocol(
    group: argparse._ArgumentGroup,
    epochs: int,
    falls: str,
    gradient: str = "full",
    default: str = "%(default)s",
) -> None:
    """What the paper's protocols fix: the length, the batch, the rates.

    Args:
        group: gets the options.
        epochs: the default.
        falls: says how the learning rate does.
        gradient: says what is the default.
        default: what the help says of the other defaults, where presets have their own.
    """
    default = f"(default: {default})"
    group.add_argument(
        "--epochs",
        type=run.positive_int,
        default=epochs,
        help=f"passes over the training images {default}",
    )
    group.add_argument(
        "--batch-size",
        type=run.positive_int,
        default=256,
        help=f"images a step and process {default}",
    )
    group.add_argument("--lr", type=run.positive_float, default=0.1, help=f"{falls} {default}")
    group.add_argument(
        "--eta", type=run.positive_float, default=0.2, help=f"of the adaptive rate {default}"
    )
    group.add_argument(
        "--gradient", choices=GRADIENTS, help=f"of the adder layers (default: {gradient})"
    )


def add_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    """All options of a recipe but those of its data."""
    add_config(parser, config)
    _add_network(parser.add_argument_group("network"))
    _add_optimisation(parser.add_argument_group("optimisation"))
    distillation.add_arguments(parser.add_argument_group("distillation"))
    run.add_arguments(parser)


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--arch",
        default="resnet20",
        help="`resnet20` (adderize.models, torchvision), `timm:NAME` or `package.module:callable`",
    )
    group.add_argument(
        "--arch-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="more arguments of the network's builder, such as shortcut=A",
    )
    group.add_argument("--layers", choices=LAYERS, default="adder")
    group.add_argument(
        "--init",
        choices=("normal", "rescale", "keep"),
        default="normal",
        help="adder filters: drawn from N(0, 1) as in the paper, or the network's own, scaled to "
        "the deviation 8 or as they are",
    )
    group.add_argument(
        "--pretrained",
        metavar="PATH|published",
        help="start from trained weights: a run's folder, a PyTorch file, or those that "
        "torchvision or timm publish; adders need --init rescale or --transfer",
    )
    trained_start.add_argument(group)
    group.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
        metavar="MODE",
        help="torch.compile the network: default, reduce-overhead or max-autotune, which on a GPU "
        "run it as CUDA graphs",
    )
    group.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory format of filters and images",
    )


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    add_protocol(
        group,
        epochs=400,
        falls="falls by --schedule",
        gradient="sign_input after --transfer match or reconstruct, otherwise full",
        default="the preset's",
    )
    group.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    group.add_argument(
        "--warmup-epochs", type=run.non_negative_float, default=0.0, help="linear rise to --lr"
    )
    group.add_argument("--power", type=run.positive_float, default=0.9, help="of --schedule poly")
    group.add_argument(
        "--milestones",
        type=run.fraction,
        nargs="+",
        default=[0.5, 0.75],
        help="of --schedule step: fractions of the training at which --lr falls by --gamma",
    )
    group.add_argument("--gamma", type=run.positive_float, default=0.1)
    group.add_argument("--momentum", type=run.fraction, default=0.9)
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, default=False)
    group.add_argument("--weight-decay", type=run.non_negative_float, default=5e-4)
    group.add_argument("--label-smoothing", type=run.fraction, default=0.0)
    group.add_argument(
        "--shift-norm-terms",
        type=run.positive_int,
        metavar="T",
        help="adders: round the norms' scales to sums of T powers of two for the last part of the "
        "training, so that `adderize.integer.multiplication_free(norm_terms=T)` loses nothing",
    )
    group.add_argument(
        "--shift-norm-after",
        type=run.fraction,
        default=0.9,
        help="of --shift-norm-terms: the part of the training before that (default: 0.9)",
    )
    group.add_argument(
        "--recalibrate",
        type=run.non_negative_int,
        default=20,
        metavar="N",
        help="adders: before each validation, re-estimate the batch norms on the last N training "
        "batches, whose running statistics lag behind fast filters (default: 20; 0: never)",
    )


class Trainee(NamedTuple):
    """What a recipe trains, and the callbacks that its layers need."""

    module: ImageClassifier
    callbacks: list[Callback]


def train(
    arguments: argparse.Namespace,
    recipe: str,
    load: Callable[[argparse.Namespace], ImageData],
    build: Callable[[argparse.Namespace, ImageData, str], Trainee] | None = None,
) -> dict[str, object]:
    """One run from parsed arguments; the contents of its metrics.json.

    Args:
        arguments: those that `load` and `build` read, and those of the run.
        recipe: names the run's folder.
        load: gives the data.
        build: gives the network; by default as the options of :func:`add_arguments` say.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    arguments.gradient = arguments.gradient or trained_start.fitting_gradient(arguments)
    device, backend = run.choose_device(arguments)
    data = load(arguments)
    seed_everything(arguments.seed, verbose=False)
    module, callbacks = (build or _build)(arguments, data, device)
    folder = run.prepare_folder(arguments, recipe)
    batches = len(data.training_loader(processes=arguments.devices * arguments.nodes))
    trainer = run.make_trainer(arguments, device, folder, callbacks, batches)
    with run.named_stops(recipe, folder):
        run.fit(trainer, module, data, arguments.resume)
        return finish(arguments, folder, trainer, module, data, backend.name)


def _build(arguments: argparse.Namespace, data: ImageData, device: str) -> Trainee:
    adders = arguments.layers == "adder"
    if arguments.transfer and not adders:
        raise AdderizeError(f"--transfer is for --layers adder, not {arguments.layers}")
    if arguments.nesterov and not arguments.momentum:
        raise AdderizeError("--nesterov needs a --momentum above 0: give --no-nesterov too")
    module = ImageClassifier(
        arguments.arch,
        data.num_classes,
        conversion=trained_start.conversion_of(arguments) if adders else None,
        binarization={} if arguments.layers == "bnn" else None,
        arch_options=options_from(arguments.arch_options),
        pretrained=None if arguments.resume else arguments.pretrained,
        start=trained_start.carry_over(arguments, data, device) if adders else None,
        distillation=distillation.from_arguments(arguments, data),
        lr=arguments.lr,
        momentum=arguments.momentum,
        nesterov=arguments.nesterov,
        weight_decay=arguments.weight_decay,
        label_smoothing=arguments.label_smoothing,
        schedule={
            "kind": arguments.schedule,
            "warmup_epochs": arguments.warmup_epochs,
            "power": arguments.power,
            "milestones": arguments.milestones,
            "gamma": arguments.gamma,
        },
        max_steps=arguments.max_steps,
        compile=arguments.compile,
        channels_last=arguments.channels_last,
    )
    if not adders:
        if arguments.shift_norm_terms:
            raise AdderizeError(f"--shift-norm-terms is for --layers adder, not {arguments.layers}")
        return Trainee(module, [])
    recalibrate = arguments.recalibrate if tracking_norms(module.model) else 0
    rate = AdaptiveLearningRate(eta=arguments.eta, recalibrate_before_validation=recalibrate)
    if not arguments.shift_norm_terms:
        return Trainee(module, [rate])
    shift_norms = ShiftNorms(
        arguments.shift_norm_terms, arguments.shift_norm_after, arguments.max_steps
    )
    return Trainee(module, [rate, shift_norms])
