"""MNIST for a microcontroller: 8-bit activations, 4-bit filters, no multiplication.

python -m recipes.mnist --data DIR --layers cnn --distort --output RUN        the teacher
python -m recipes.mcu --data DIR --kd-teacher RUN --output OUTPUT

A small network whose six layers are adders (adderize.models.micro_cnn) is trained in floats, then
fine-tuned with its rounding in the forward, and lowered to an integer-only network:

OUTPUT/                     the run of the float network, as of every recipe
OUTPUT/quantized/           the network on bytes, for adderize.load_model
OUTPUT/integers/            the integer-only network, likewise
OUTPUT/c/                   the same as C99, and what it costs
OUTPUT/mcu.json             accuracies on the test images, in floats, on bytes, and on integers
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from adderize import AdaptiveLearningRate, load_model, recalibrate, save_model
from adderize.data import load_mnist
from adderize.data.distortion import distortion
from adderize.data.normalisation import MNIST
from adderize.export import export_c
from adderize.export.c.check import measure_on_riscv
from adderize.export.c.riscv import RV32EC, missing_tools
from adderize.integer import IntegerNetwork, to_integer
from adderize.models import micro_cnn
from adderize.quantize import prepare_qat, quantize
from adderize.quantize.start import Ranges
from adderize.tables import Table
from recipes import classifier, distillation, mnist, run
from recipes.batches import ImageData, InMemoryImages
from recipes.fine_tuning import fine_tune
from recipes.image_classifier import ImageClassifier

ARCH = "adderize.models:micro_cnn"
# Bytes 0 to 255 are inputs 0 to 4: the integers of the network are those of the image.
MEAN, STD = (0.0,), (0.25,)
CONVERSION = {"stem": True, "head": True, "linear": True, "init": "normal"}
QUANTIZED, INTEGERS, C, RESULTS = "quantized", "integers", "c", "mcu.json"
_EXAMPLES = 10
_CALIBRATION_BATCHES = 8
_RECALIBRATION_BATCHES = 50


def make_parser() -> argparse.ArgumentParser:
    parser = run.make_parser("mcu", __doc__)
    parser.set_defaults(arch=ARCH, layers="adder")
    mnist.add_data(parser)
    parser.add_argument(
        "--distortion",
        type=run.non_negative_float,
        default=0.5,
        metavar="STRENGTH",
        help="how much training images are rotated, scaled, sheared, shifted and bent: 1 is what "
        "recipes.mnist --distort does to its larger network's, 0 nothing",
    )
    protocol = parser.add_argument_group("training in floats")
    classifier.add_protocol(protocol, epochs=50, falls="falls to 0 along a half cosine")
    tuning = parser.add_argument_group("fine-tuning with the rounding")
    tuning.add_argument("--trained", metavar="RUN", help="skip the training: a finished run of it")
    tuning.add_argument("--tuning-epochs", type=run.positive_int, default=10)
    tuning.add_argument("--tuning-lr", type=run.positive_float, default=0.05)
    tuning.add_argument(
        "--tuning-distortion",
        type=run.non_negative_float,
        metavar="STRENGTH",
        help="as --distortion, for the fine-tuning (default: that of --distortion)",
    )
    tuning.add_argument("--bits", type=run.positive_int, default=8, help="of activations")
    tuning.add_argument("--filter-bits", type=run.positive_int, default=4)
    tuning.add_argument("--method", default="mse", help="of quantize(): how ranges are found")
    distillation.add_arguments(parser.add_argument_group("distillation"))
    run.add_arguments(parser)
    # A teacher of recipes.mnist was trained on images that are normalised in the usual way.
    parser.set_defaults(kd_mean=[*MNIST.mean], kd_std=[*MNIST.std])
    parser.set_defaults(output=str(Path("runs") / "mcu"))
    return parser


def train(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """One run from the command line's arguments; the contents of its mcu.json.

    Of several processes (``--devices``) the training in floats makes use, and the first one does
    the rest; the others return nothing.

    Raises:
        AdderizeError: bad arguments or data, or a training that diverges.
    """
    arguments = run.parse(make_parser(), argv, last=RESULTS)
    Ranges(arguments.method, arguments.bits, arguments.filter_bits).check()
    folder = Path(arguments.output)
    if arguments.trained is None and not (arguments.resume and (folder / run.METRICS).exists()):
        classifier.train(arguments, "mcu", _load, _build)
    else:
        run.choose_device(arguments)
        run.prepare_folder(arguments, "mcu")
    return _micro_network(arguments, folder) or {}


@rank_zero_only
def _micro_network(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fine-tunes the model of a training in floats and exports it."""
    data = _load(arguments, arguments.tuning_distortion)
    model = load_model(micro_cnn(), Path(arguments.trained or folder) / "model")
    results = _lower(arguments, model, data, folder)
    run.write_json(folder / RESULTS, results)
    print(_table(results), flush=True)
    return results


def _load(arguments: argparse.Namespace, strength: float | None = None) -> InMemoryImages:
    dataset = load_mnist(arguments.data, 28)._replace(mean=MEAN, std=STD)
    strength = arguments.distortion if strength is None else strength
    augment = distortion(strength) if strength else None
    return InMemoryImages(dataset, arguments.batch_size, arguments.seed, augment=augment)


def _build(arguments: argparse.Namespace, data: ImageData, device: str) -> classifier.Trainee:
    module = ImageClassifier(
        ARCH,
        data.num_classes,
        conversion={**CONVERSION, "gradient": arguments.gradient},
        distillation=distillation.from_arguments(arguments, data),
        lr=arguments.lr,
        max_steps=arguments.max_steps,
    )
    return classifier.Trainee(module, [AdaptiveLearningRate(eta=arguments.eta)])


def _lower(
    arguments: argparse.Namespace, model: nn.Module, data: InMemoryImages, folder: Path
) -> dict[str, Any]:
    """From floats to integers; writes the network on bytes."""
    options = {
        "method": arguments.method,
        "bits": arguments.bits,
        "filter_bits": arguments.filter_bits,
    }
    images, labels = data.dataset.test
    cpu = torch.device("cpu")
    calibration = list(data.recalibration_images(_CALIBRATION_BATCHES, cpu))

    def top1(network: nn.Module) -> float:
        return _top1(network, data.normalized(images), labels)

    results: dict[str, Any] = {
        "float": top1(model.eval()),
        "rounded": top1(quantize(model, calibration, **options)),
    }
    prepared = prepare_qat(model, calibration, **options)
    results["tuning"] = fine_tune(
        prepared,
        data,
        distillation.from_arguments(arguments, data),
        epochs=arguments.tuning_epochs,
        lr=arguments.tuning_lr,
        eta=arguments.eta,
        max_steps=arguments.max_steps,
    )
    recalibrate(prepared, data.recalibration_images(_RECALIBRATION_BATCHES, cpu))
    results["fine-tuned"] = top1(prepared.eval())
    quantized = quantize(prepared, calibration)
    results["bytes"] = top1(quantized)
    save_model(quantized, folder / QUANTIZED)
    integers = to_integer(quantized, mean=MEAN, std=STD, input_size=data.input_size)
    save_model(integers, folder / INTEGERS)
    results["integers"] = _top1(integers, images, labels)
    results["c"] = _export(integers, folder / C, images[:_EXAMPLES])
    return results


def _export(integers: IntegerNetwork, folder: Path, examples: Tensor) -> dict[str, Any]:
    """What an inference costs, and where the tools are, on a core of the smallest kind."""
    report = export_c(integers, folder, name="mnist", examples=examples)
    print(report, flush=True)
    if missing := missing_tools():
        print(f"{', '.join(missing)} not found: not compiled for RISC-V", file=sys.stderr)
        return report.to_dict()
    comparison, cost = measure_on_riscv(integers, folder, "mnist", examples, RV32EC)
    print(comparison)
    print(
        f"flash {cost.flash:,} bytes, memory {cost.memory + cost.stack:,} bytes with a stack of "
        f"{cost.stack}, {cost.instructions:,} instructions an image",
        flush=True,
    )
    return {**report.to_dict(), **dataclasses.asdict(cost), "equal": comparison.equal}


def _top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return round(100 * float((answers == labels).float().mean()), 4)


_ROWS = {
    "float": "floats",
    "rounded": "rounded after the training",
    "fine-tuned": "fine-tuned with the rounding",
    "bytes": "on bytes",
    "integers": "integer-only",
}


def _table(results: dict[str, Any]) -> str:
    rows = [[text, f"{results[key]:.2f}"] for key, text in _ROWS.items()]
    return Table(["network", "test top-1, %"], rows, texts=1).text()


main = run.command("mcu", train)


if __name__ == "__main__":
    sys.exit(main())
