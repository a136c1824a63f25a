"""`adderize count`: multiplications, additions and XNORs, before and after a conversion."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from adderize.checkpoints import named
from adderize.cli.messages import note
from adderize.cli.shared_options import (
    add_arch_options,
    add_conversion_options,
    add_cost_options,
    add_format,
    add_input,
    add_layers,
    arch_options,
    conversion_options,
    output_file,
    refuse,
)
from adderize.dataflow import blank_input
from adderize.errors import AdderizeError
from adderize.integer import multiplication_free
from adderize.models import by_name
from adderize.models.by_name import FORMS
from adderize.surgery import adderize, binarize
from adderize.whole_files import write_whole

HELP = "multiplications against additions, before and after a conversion"
EXAMPLES = (
    "adderize count resnet18",
    "adderize count resnet50 --depth 1 --energy int8",
    "adderize count timm:efficientnet_b0 --sort energy_joule --only adder",
    "adderize count --paper --format md",
)


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model", nargs="?", metavar="ARCH",
        help=f"{FORMS}; or the folder of a saved model (with --arch, but for an integer network)",
    )  # fmt: skip
    what.add_argument(
        "--paper", action="store_true", help="the AdderNet paper's table, beside our counts"
    )
    parser.add_argument("--arch", metavar="ARCH", help="the architecture of a saved model")
    add_arch_options(parser)
    add_layers(parser)
    parser.add_argument(
        "--multiplication-free", action="store_true",
        help="with every scale of the adder network as shifts and additions",
    )  # fmt: skip
    add_input(parser)
    parser.add_argument(
        "--counter", choices=("meta", "fvcore"), default="meta",
        help="traces PyTorch's dispatcher without data (default), or TorchScript with fvcore",
    )  # fmt: skip
    add_format(parser)
    parser.add_argument("--depth", type=int, metavar="N", help="sum up layers below N names")
    parser.add_argument("--only", metavar="KIND", help="rows of one kind of layer, such as adder")
    parser.add_argument(
        "--sort", metavar="KEY",
        help="largest first: multiplications, additions, energy_joule, ...; before.KEY likewise",
    )  # fmt: skip
    add_cost_options(parser)
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="also draw the stages (png, svg)"
    )
    parser.add_argument("-o", "--output", type=output_file, metavar="FILE", help="default: stdout")
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.paper:
        _check_alone(arguments)
    plot, output = arguments.plot, arguments.output
    if plot and output and plot.resolve() == output.resolve():
        raise AdderizeError(f"--plot and --output are both {arguments.plot}: give two files")
    text = _paper(arguments) if arguments.paper else _budget(arguments)
    if arguments.output is None:
        print(text)
        return 0
    write_whole(arguments.output, text + "\n")
    note(f"wrote {arguments.output}")
    return 0


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raise for options beside `--paper` that its table does not have."""
    parser = argparse.ArgumentParser()
    configure(parser)
    alone = vars(parser.parse_args(["--paper"]))
    given = [
        action.option_strings[-1]
        for action in parser._actions
        if action.dest not in ("model", "help", "format", "output")
        and getattr(arguments, action.dest, None) != alone.get(action.dest)
    ]
    instead = "leave it out, or name an architecture"
    refuse("--paper is a table of the paper's networks and", given, instead)


def _paper(arguments: argparse.Namespace) -> str:
    from adderize.counting import paper

    return paper.text(paper.paper_table(), arguments.format)


def _budget(arguments: argparse.Namespace) -> str:
    from adderize.counting import count

    model = named.blank(arguments.model, arguments.arch, arch_options=arch_options(arguments))
    input_size = arguments.input or by_name.input_size(arguments.arch or arguments.model, model)
    options = conversion_options(arguments)
    if arguments.layers == "bnn":
        if options.pop("linear", False):
            raise AdderizeError("--linear has no binary form: leave it out with --layers bnn")
        options["example_input"] = blank_input(model, input_size)
        model, options = binarize(model, **options), {}
    if arguments.multiplication_free:
        model, options = _without_products(arguments, options), {}
    tables = {"energy": arguments.energy, "latency": arguments.latency}
    budget = count(model, input_size, counter=arguments.counter, **tables, **options)
    budget = dataclasses.replace(budget, model=arguments.model)
    if not any(layer.kind in ("adder", "binary") for layer in budget.layers):
        note("no layer becomes an adder: before and after are the same; `adderize plan` says why")
    if budget.uncounted:
        operators = sorted({item.operator for item in budget.uncounted})
        note(f"not counted: {', '.join(operators)}; see `uncounted` in the result")
    if arguments.plot:
        budget.plot(arguments.plot)
        note(f"wrote {arguments.plot}")
    budget = budget.select(only=arguments.only, depth=arguments.depth, sort=arguments.sort)
    return budget.render(arguments.format)


def _without_products(arguments: argparse.Namespace, options: dict[str, Any]) -> nn.Module:
    if arguments.layers == "bnn":
        raise AdderizeError("binary layers scale by products: leave out --multiplication-free")
    more = arch_options(arguments)
    if Path(arguments.model).is_dir():
        loaded = named.load(arguments.model, arguments.arch, arch_options=more, **options).model
    else:
        loaded = adderize(by_name.build(arguments.model, **more), **options)
    return multiplication_free(loaded.eval())
