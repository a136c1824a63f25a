"""All that is measured on a GPU, in one file: limits, layers, training steps, a CIFAR epoch.

The file is written anew with each result, and names what is not in it yet as left out. A part that
fails is recorded by name, and the others follow, also where it hangs or ends its process; after the
time that was given none starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adderize.bench import gpu, layers
from adderize.bench.cifar_epoch import Epoch, measure_epoch
from adderize.bench.compiling import run_in_processes
from adderize.bench.gpu_limits import limits
from adderize.bench.gpu_steps import Network, measure_step, run_step
from adderize.bench.layers import Layer, run_passes
from adderize.bench.timing import machine
from adderize.bench.worker import Worker
from adderize.errors import AdderizeError, classed
from adderize.ops.geometry import Geometry
from adderize.tables import json_text
from adderize.whole_files import write_whole

PRECISIONS = ("fp32", "bf16")
# What a part takes at least and at most: with less time left it does not start, after more it is
# stopped, or so long after the time is up.
_SECONDS, _EPOCHS_SECONDS = (5.0, 90.0), (30.0, 100.0)
_AFTER_THE_END = 30.0
# Of the time, what compiling may take; trainings, in processes of their own, end so long before it.
_COMPILING, _BEFORE_THE_END = 0.4, 3.0

LAYERS = (
    Layer("3x3 64, 56x56", 64, 64, 56, 64, 3, Geometry.of(padding=1)),
    Layer("3x3 128, 28x28", 64, 128, 28, 128, 3, Geometry.of(padding=1)),
    Layer("3x3 256, 14x14", 64, 256, 14, 256, 3, Geometry.of(padding=1)),
    Layer("3x3 512, 7x7", 64, 512, 7, 512, 3, Geometry.of(padding=1)),
    Layer("1x1 256-64, 56x56", 64, 256, 56, 64, 1),
    Layer("3x3 16, 32x32, b256", 256, 16, 32, 16, 3, Geometry.of(padding=1)),
    Layer("3x3 32, 16x16, b256", 256, 32, 16, 32, 3, Geometry.of(padding=1)),
    Layer("3x3 64, 8x8, b256", 256, 64, 8, 64, 3, Geometry.of(padding=1)),
    Layer("depthwise 3x3 96, 112x112", 64, 96, 112, 96, 3, Geometry.of(padding=1, groups=96)),
    Layer("depthwise 5x5 240, 28x28", 64, 240, 28, 240, 5, Geometry.of(padding=2, groups=240)),
    Layer("depthwise 7x7 96, 56x56", 64, 96, 56, 96, 7, Geometry.of(padding=3, groups=96)),
    Layer("3x3 128 in 32, 56x56", 64, 128, 56, 128, 3, Geometry.of(padding=1, groups=32)),
    Layer("3x3 256 in 32, 28x28", 64, 256, 28, 256, 3, Geometry.of(padding=1, groups=32)),
)


class Settings(NamedTuple):
    """What is measured.

    Attributes:
        layers, networks: of both, all in fp32 and bf16.
        epochs: of CIFAR-10's recipe.
        timing: `rounds` and `seconds` of :func:`adderize.bench.timing.side_by_side`.
    """

    layers: Sequence[Layer]
    networks: Sequence[Network]
    epochs: Sequence[Epoch]
    timing: dict[str, Any]


# A whole number of batches, so that one size is compiled and recorded.
_IMAGES = 195 * 256
_EPOCH = ("--epochs", "3", "--batch-size", "256")
_FAST = ("--data-on-device", "--compile", "reduce-overhead")
ON_GPU = Settings(
    LAYERS,
    (
        Network("resnet18", 128),
        Network("efficientnet_b0", 128),
        Network("timm:convnext_tiny", 128),
        Network("resnet50", 128),
        Network("mobilenet_v2", 128),
        # The epochs' network, launched by the host: what its kernels take, and what an epoch adds.
        Network("resnet20", 256, (3, 32, 32)),
    ),
    (
        Epoch("adder", "adder", _IMAGES, (*_EPOCH, *_FAST)),
        Epoch("cnn", "cnn", _IMAGES, (*_EPOCH, *_FAST)),
        Epoch("adder, data on the host, not compiled", "adder", _IMAGES, _EPOCH),
    ),
    {"rounds": 3, "seconds": 0.03},
)
# Does it run? The figures mean nothing.
ON_CPU = Settings(
    (
        Layer("3x3 8, 6x6", 2, 8, 6, 8, 3, Geometry.of(padding=1)),
        Layer("depthwise 3x3 8, 6x6", 2, 8, 6, 8, 3, Geometry.of(padding=1, groups=8)),
    ),
    (Network("resnet20", 2, (3, 32, 32)),),
    (Epoch("adder", "adder", 64, (
        "--epochs", "1", "--batch-size", "32", "--max-steps", "1", "--recalibrate", "0",
        "--accelerator", "cpu", "--data-on-device")),),
    {"rounds": 1, "seconds": 0.001},
)  # fmt: skip


# A call, and the seconds that it may take.
_Run = Callable[[Callable[[], Any], float], Any]


class Part(NamedTuple):
    """One measurement: where its result goes, its name, what gives it, and least and most seconds.

    What gives it can be pickled.
    """

    section: str
    name: str
    measure: Callable[[], Any]
    seconds: tuple[float, float] = _SECONDS

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"


def write_report(
    file: Path,
    device: str,
    budget: float = 240.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Measures and writes; the contents of the file.

    Args:
        file: JSON; written whole each time, with what there is.
        device: CUDA, or the CPU with a few tiny layers, to see whether everything runs.
        budget: seconds after which no part starts. On CUDA all ends half a minute later.
        settings: what to measure.
        clock: seconds.

    Raises:
        AdderizeError: the file cannot be written, or the device is another than the first.
    """
    start = clock()
    if torch.device(device).index:
        raise AdderizeError(
            f"--device is {device}, but the processes of a report take the first one: set "
            f"CUDA_VISIBLE_DEVICES={torch.device(device).index} and give --device cuda"
        )
    if settings is None:
        settings = ON_GPU if gpu.is_cuda(device) else ON_CPU
    parts = list(_parts(settings, device))
    report: dict[str, Any] = {
        "machine": machine_facts(device),
        "limits": None,
        "layers": [],
        "steps": [],
        "cifar": [],
        "failed": {},
        "left_out": [str(part) for part in parts],
        "took": {},
        "seconds": 0.0,
    }
    write_whole(file, json_text(report) + "\n")

    def tick(name: str) -> None:
        before, report["seconds"] = report["seconds"], clock() - start
        report["took"][name] = report["seconds"] - before
        write_whole(file, json_text(report) + "\n")

    if gpu.is_cuda(device):
        limit = _COMPILING * budget
        end = time.monotonic() + limit - _BEFORE_THE_END
        run_in_processes(_untimed(settings, device, end), limit)
        tick("compiling")
    with _runs(device) as run:
        for part in parts:
            left = budget - (clock() - start)
            least, most = part.seconds
            if left >= least:
                _add(report, part, run, min(most, left + _AFTER_THE_END))
                tick(str(part))
    return report


@contextmanager
def _runs(device: str) -> Iterator[_Run]:
    """How parts are run: a GPU's in a process that can be ended; on a CPU nothing hangs."""
    if not gpu.is_cuda(device):
        yield lambda call, limit: call()
        return
    worker = Worker()
    try:
        yield worker.run
    finally:
        worker.stop()


def machine_facts(device: str) -> dict[str, Any]:
    """Processor, GPU, versions."""
    facts = machine(torch.device(device)) | {"device": device, "cuda": torch.version.cuda}
    if gpu.is_cuda(device):
        properties = torch.cuda.get_device_properties(device)
        facts["multiprocessors"] = properties.multi_processor_count
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _parts(settings: Settings, device: str) -> Iterator[Part]:
    """The quick and the usual ones first."""
    yield Part("limits", "register loops", partial(_limits, device))
    for layer in settings.layers:
        yield Part("layers", layer.name, partial(_layer, layer, settings, device))
    yield from _steps(settings.networks[:1], settings, device)
    yield from _epochs(settings.epochs[:2])
    yield from _steps(settings.networks[1:], settings, device)
    yield from _epochs(settings.epochs[2:])


def _untimed(settings: Settings, device: str, end: float) -> Iterator[Callable[[], Any]]:
    """What the parts would have to compile first, until `end` (monotonic); the longest first."""
    for epoch in settings.epochs:
        yield partial(_few_steps, epoch, end)
    for network in settings.networks:
        for precision in PRECISIONS:
            yield partial(run_step, network, precision, device)
    for layer in settings.layers:
        yield partial(run_passes, layer, device)


def _few_steps(epoch: Epoch, end: float) -> None:
    """Nothing of it may run beside what is timed: killing a process spares those it has started."""
    measure_epoch(epoch.of_few_steps(), end - time.monotonic())


def _epochs(epochs: Sequence[Epoch]) -> Iterator[Part]:
    for epoch in epochs:
        measure = partial(measure_epoch, epoch, _EPOCHS_SECONDS[1])
        yield Part("cifar", epoch.name, measure, _EPOCHS_SECONDS)


def _steps(networks: Sequence[Network], settings: Settings, device: str) -> Iterator[Part]:
    for network in networks:
        for precision in PRECISIONS:
            measure = partial(_step, network, precision, settings, device)
            yield Part("steps", f"{network.arch}, {precision}", measure)


def _limits(device: str) -> dict[str, float] | None:
    found = limits(device)
    return found and {
        "forward_pairs_per_second": found.forward,
        "input_gradient_pairs_per_second": found.input_gradient,
    }


def _layer(layer: Layer, settings: Settings, device: str) -> dict[str, Any]:
    with _timed_algorithms():
        (row,) = layers.measure((layer,), device, every_precision=True, **settings.timing)
    return row


def _step(network: Network, precision: str, settings: Settings, device: str) -> dict[str, Any]:
    with _timed_algorithms():
        return measure_step(network, precision, device, **settings.timing)


@contextmanager
def _timed_algorithms() -> Iterator[None]:
    """cuDNN's, as in the recipes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _add(report: dict[str, Any], part: Part, run: _Run, limit: float) -> None:
    report["left_out"].remove(str(part))
    try:
        result = run(part.measure, limit)
    except Exception as error:
        # One part's failure, such as too little memory, must not cost the others.
        report["failed"][str(part)] = classed(error)
        return
    if isinstance(report[part.section], list):
        report[part.section].append(result)
    else:
        report[part.section] = result
