"""`adderize quantize`: a saved network into 8-bit integers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adderize.checkpoints import named
from adderize.checkpoints.folders import save_model
from adderize.checkpoints.hub import is_on_hub, repository_of
from adderize.checkpoints.model_card import ModelCard
from adderize.cli.images import image_statistics, images, labelled_images
from adderize.cli.messages import note
from adderize.cli.shared_options import (
    add_format,
    add_image_options,
    add_network_arguments,
    check_apart,
    load_network,
    output_folder,
)
from adderize.errors import AdderizeError
from adderize.integer import IntegerNetwork, integer_report, to_integer
from adderize.models.by_name import input_size
from adderize.quantize import quantize, quantize_report
from adderize.quantize.observe import METHODS
from adderize.tables import json_text
from adderize.transfer.stages import Stages

HELP = "an 8-bit or integer-only network from a trained adder network"
EXAMPLES = (
    "adderize quantize runs/cifar/version_0 --arch resnet20 --data data/cifar10 -o resnet20-int8",
    "adderize quantize model --arch resnet18 --data photographs -o int8 --method mse --bits 6",
    "adderize quantize model --arch resnet18 --data photographs -o integers --integer",
)
_BATCH = 32


def configure(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, fresh=False)
    add_image_options(
        parser, "images to calibrate on, training ones where there are any", limit=1024
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_folder,
        metavar="FOLDER",
        required=True,
        help="where the result is saved",
    )
    parser.add_argument(
        "--method", choices=METHODS, default="minmax",
        help="how ranges follow from the images (minmax)",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=int, choices=range(2, 9), default=8, help="of inputs and filters (8)"
    )
    parser.add_argument(
        "--filter-bits",
        type=int,
        choices=range(1, 9),
        metavar="N",
        help="of filters, where fewer than --bits",
    )
    parser.add_argument(
        "--integer", action="store_true",
        help="save the integer-only network, without a multiplication, and compare it on "
        "test images",
    )  # fmt: skip
    parser.add_argument(
        "--terms", type=int, nargs=2, metavar=("SCALE", "WEIGHT"),
        help="of --integer: powers of two for a scale, and for a weight of kept layers (3 3)",
    )  # fmt: skip
    add_format(parser, ("table", "json"))


def run(arguments: argparse.Namespace) -> int:
    if arguments.terms and not arguments.integer:
        raise AdderizeError("--terms is of --integer: leave it out, or give both")
    check_apart(arguments.output, arguments.model)
    loaded = load_network(arguments)
    batches = images(arguments, loaded.arch, loaded.model, split="train").split(_BATCH)
    if arguments.integer:
        return _into_integers(arguments, loaded, batches)
    quantized = _quantized(arguments, loaded.model, batches)
    save_model(quantized, arguments.output, card=_card(arguments))
    report = quantize_report(quantized)
    print(json_text(report.to_dict()) if arguments.format == "json" else report)
    note(f"saved in {arguments.output}")
    return 0


def _card(arguments: argparse.Namespace) -> ModelCard:
    title = f"{arguments.arch or 'An adder network'} in {arguments.bits} bits"
    base = repository_of(arguments.model) if is_on_hub(arguments.model) else ""
    return ModelCard(title=title, base_model=base)


def _quantized(
    arguments: argparse.Namespace, model: nn.Module, batches: Sequence[Tensor]
) -> nn.Module:
    return quantize(
        model,
        batches,
        method=arguments.method,
        bits=arguments.bits,
        filter_bits=arguments.filter_bits,
        inplace=True,
    )


def _into_integers(
    arguments: argparse.Namespace, loaded: named.Loaded, batches: Sequence[Tensor]
) -> int:
    size = arguments.input or input_size(loaded.arch, loaded.model)
    statistics = image_statistics(arguments, loaded.model, size)
    test = labelled_images(arguments, loaded.arch, loaded.model, "test", again=True)
    stages = Stages(loaded.model, *test, maps=True)
    quantized = _quantized(arguments, loaded.model, batches)
    stages.add(f"{arguments.bits} bits", quantized)
    terms, filter_terms = arguments.terms or (3, 3)
    network = to_integer(
        quantized, mean=statistics.mean, std=statistics.std, input_size=size, terms=terms,
        filter_terms=filter_terms,
    )  # fmt: skip
    stages.add("integers", _OnNormalised(network))
    save_model(network, arguments.output, card=_card(arguments))
    report = integer_report(network)
    if arguments.format == "json":
        print(json_text({**report.to_dict(), **stages.to_dict()}))
    else:
        print(f"{report}\n\n{stages}")
    note(f"saved in {arguments.output}")
    return 0


class _OnNormalised(nn.Module):
    """An integer network on the images that its float network takes: their bytes come back."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        program = self.network.program
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            for values in (program.mean, program.std)
        )
        raw = (255 * (images * std + mean)).round_().clamp_(0, 255)
        return self.network.logits(raw.byte())
