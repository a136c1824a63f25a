"""`adderize bench`: speed and memory beside the convolution, in one process."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from adderize.bench import gpu, integers, layers, processor_limits, twins
from adderize.bench.rivals import onnxruntime_missing
from adderize.bench.timing import machine
from adderize.cli import gpu_report
from adderize.cli.images import images
from adderize.cli.shared_options import add_input, duration, positive, usable_device
from adderize.data.image_sources import SOURCES
from adderize.errors import AdderizeError, failing, writing
from adderize.models.by_name import FORMS, blank, build, input_size
from adderize.ops.native.register_loops import LOOPS
from adderize.tables import Table, json_text, shape_text
from adderize.whole_files import write_whole

HELP = "speed and memory beside the convolution, side by side in one process"
EXAMPLES = (
    'adderize bench layers --only "3x3 64"',
    "adderize bench limits --threads 1",
    "adderize bench step --arch resnet18 resnet50 --batch 8",
    "adderize bench gpu-report -o report.json",
    "adderize bench inference --int8 --data photographs --threads 1 --json figures.json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    single = _task(what, "layers", "forward and gradients of single layers")
    single.add_argument("--only", metavar="TEXT", help="layers whose name contains TEXT")
    single.set_defaults(measure=_layers)
    for task, text in (("step", "a whole training step"), ("inference", "a forward pass")):
        network = _task(what, task, f"{text} of a CNN and of its adder twin")
        network.add_argument(
            "--arch", nargs="+", default=["resnet18"], metavar="ARCH", help=f"{FORMS} (resnet18)"
        )
        network.add_argument(
            "--batch", nargs="+", type=positive, default=[8], metavar="N", help="images (8)"
        )
        add_input(network)
        network.set_defaults(measure=_networks, task=task)
        if task == "inference":
            _configure_int8(network)
    for command in what.choices.values():
        command.add_argument("--device", default="cpu", help="such as cpu or cuda (cpu)")
    bounds = _task(
        what, "limits", "what the processor's arithmetic allows, with each instruction set"
    )
    bounds.set_defaults(measure=_limits, device="cpu")
    for command in what.choices.values():
        command.add_argument("--threads", type=positive, metavar="N", help="default: torch's")
        command.add_argument(
            "--rounds", type=positive, default=5, metavar="N",
            help="turns of each rival (%(default)s)",
        )  # fmt: skip
        command.add_argument(
            "--seconds", type=duration, default=0.2, metavar="S",
            help="length of a turn (%(default)s)",
        )  # fmt: skip
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    bounds.set_defaults(rounds=100, seconds=0.002)
    whole = _task(what, "gpu-report", gpu_report.HELP)
    gpu_report.configure(whole)
    whole.set_defaults(measure=None)


def _task(what: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = what.add_parser(name, help=text, description=text)
    return parser


def _configure_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--int8", action="store_true",
        help="8 bits beside float32: the adder network, and the CNN in onnxruntime (optional)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PATH",
        help="with --int8: images to estimate norms and ranges on, which decide how much of a "
        f"fresh network is alive: {SOURCES} (default: noise)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, default=64, metavar="N", help="images at most (64)"
    )
    parser.set_defaults(mean=None, std=None)


def run(arguments: argparse.Namespace) -> int:
    if arguments.measure is None:
        _device(arguments.device)
        return gpu_report.run(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine(_device(arguments.device))
    report: dict[str, Any] = {"what": arguments.what, "machine": facts, "rows": []}
    if arguments.json:
        _check_writable(arguments.json)
    shown = {name: value for name, value in facts.items() if isinstance(value, (str, int))}
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()))
    beside = arguments.what != "limits" and "gpu" not in facts
    if beside and (reason := processor_limits.missing()):
        print(f"the processor's limits are left out ({reason})")
    try:
        for row in arguments.measure(arguments):
            report["rows"].append(row)
    finally:
        # What was measured before an error, or Ctrl-C, is kept; an older file is, if nothing was.
        if arguments.json and report["rows"]:
            write_whole(arguments.json, json_text(report) + "\n")
    return 0


def _timing(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"rounds": arguments.rounds, "seconds": arguments.seconds}


def _device(name: str) -> torch.device:
    device = usable_device(name)
    if device.type == "cuda" and device.index is not None:
        # Timers wait for the current device only.
        torch.cuda.set_device(device)
    return device


def _check_writable(file: Path) -> None:
    """Said before the work and not after it; what the file holds stays."""
    is_new = not file.exists()
    with writing(file):
        file.open("a").close()
        if is_new:
            file.unlink()


def _limits(arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    rates = processor_limits.measure_every_instruction_set(**_timing(arguments))
    rows = [
        [name, term, *(f"{of_cpu[name] / 1e9:.1f}" for of_cpu in rates.values())]
        for name, term in LOOPS.items()
    ]
    print(Table(["G pairs a second", "a pair of x and F", *rates], rows, texts=2).text())
    return [{"instruction_set": cpu, **of_cpu} for cpu, of_cpu in rates.items()]


def _layers(arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    text = " ".join((arguments.only or "").split())
    chosen = tuple(each for each in layers.LAYERS if text in " ".join(each.name.split()))
    if not chosen:
        names = "; ".join(layer.name for layer in layers.LAYERS)
        raise AdderizeError(f"no layer's name contains {arguments.only!r}; there are: {names}")
    timing = _timing(arguments)
    on_gpu = gpu.is_cuda(arguments.device)
    if on_gpu:
        print("adder milliseconds (times the convolution's in float32, TF32 and bfloat16)")
    else:
        print("adder milliseconds (times the convolution's, percent of the processor's limit)")
        print(f"{'layer':34}" + "".join(f"{name:>22}" for name in layers.PASSES))
    for row in layers.measure(chosen, arguments.device, **timing):
        if on_gpu:
            print(row["layer"])
            for name in layers.TRAINING_PASSES:
                print(_gpu_line(name, row[name]), flush=True)
        else:
            cells = "".join(f"{_cell(row[name]):>22}" for name in layers.PASSES)
            print(f"{row['layer']:34}{cells}", flush=True)
        yield row


def _cell(row: dict[str, float]) -> str:
    percent = f", {row['percent_of_limit']:.0f} %" if "percent_of_limit" in row else ""
    return f"{row['adder_ms']:.2f} ({row['ratio']:.2f}x{percent})"


def _gpu_line(name: str, row: dict[str, float]) -> str:
    ratios = ", ".join(
        f"{row['adder_ms'] / row[f'{rival}_ms']:.2f}x"
        for rival in ("convolution", "convolution_tf32", "convolution_bf16")
    )
    half = row["adder_bf16_ms"] / row["convolution_bf16_ms"]
    line = f"  {name:16}{row['adder_ms']:>9.3f} ({ratios})"
    line += f"; bfloat16 {row['adder_bf16_ms']:.3f} ({half:.2f}x)"
    if "cudnn_ms" in row:
        line += f"; cuDNN's own {row['cudnn_ms']:.3f}, bfloat16 {row['cudnn_bf16_ms']:.3f}"
    if "pairs_per_second" in row:
        line += f"; {row['pairs_per_second'] / 1e12:.2f} Tpair/s"
    if "percent_of_limit" in row:
        line += f", {row['percent_of_limit']:.0f} % of the limit"
    return f"{line}; {row['adder_mb']:.0f} MB (convolution {row['convolution_mb']:.0f} MB)"


def _networks(arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    if getattr(arguments, "int8", False):
        yield from _integers(arguments)
        return
    if getattr(arguments, "data", None):
        raise AdderizeError("--data is of --int8: leave it out, or give both")
    shapes = _shapes(arguments)
    print(f"{'network':24}{'batch':>6}{'cnn':>22}{'adder':>22}{'time':>8}{'memory':>8}")
    timing = _timing(arguments)
    for arch, shape in shapes:
        for batch in arguments.batch:
            with failing(f"{arch} fails on images of {shape_text(shape)}"):
                row = twins.measure(arguments.task, arch, shape, batch, arguments.device, **timing)
            cells = "".join(
                f"{row[f'{name}_ms']:>10.1f} ms {row[f'{name}_peak_mb']:>6.0f} MB"
                for name in ("cnn", "adder")
            )
            memory = row["memory_ratio"]
            ratios = f"{row['ratio']:>7.2f}x"
            ratios += f"{'-':>8}" if memory is None else f"{memory:>7.2f}x"
            if "limit_ms" in row:
                ratios += f", {row['percent_of_limit']:.0f} % of the limit"
            print(f"{arch:24}{batch:>6}{cells}{ratios}", flush=True)
            if "pairs_per_second" in row:
                print(_gpu_networks_line(row), flush=True)
            yield row


def _shapes(arguments: argparse.Namespace) -> list[tuple[str, tuple[int, ...]]]:
    """Names and inputs, all of them before the first is measured: one of them may be wrong."""
    built = [(arch, blank(arch)) for arch in arguments.arch]
    return [(arch, arguments.input or input_size(arch, model)) for arch, model in built]


def _gpu_networks_line(row: dict[str, Any]) -> str:
    text = ", ".join(
        f"{name}: cnn {row[f'cnn_{key}_ms']:.1f} ms, adder {row[f'adder_{key}_ms']:.1f} ms"
        for key, name in (("tf32", "TF32"), ("bf16", "bfloat16"))
    )
    rate, percent = row["pairs_per_second"] / 1e12, row.get("percent_of_limit")
    of_limit = "" if percent is None else f", {percent:.0f} % of the limit"
    return f"  {text}; adder layers {rate:.2f} Tpair/s{of_limit}"


def _integers(arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    if arguments.device != "cpu":
        raise AdderizeError(f"--int8 measures the CPU; --device is {arguments.device}")
    missing = onnxruntime_missing()
    if missing:
        print(f"onnxruntime is left out ({missing})")
    timing = _timing(arguments)
    for arch, shape in _shapes(arguments):
        if arguments.data:
            batch = images(arguments, arch, build(arch))
        else:
            batch = torch.randn(
                *(32, *shape), generator=torch.Generator("cpu").manual_seed(0), device="cpu"
            )
        with failing(f"{arch} fails on images of {shape_text(shape)}"):
            for row in integers.measure(arch, batch, arguments.batch, **timing):
                print(f"{arch}, batch {row['batch']}, threads: {row['threads']}", end="")
                print(f"; int8 against float32: cosine {row['cosine_mean']:.4f} ", end="")
                print(f"(lowest of an image {row['cosine_min']:.4f})")
                for name in integers.ORDER:
                    if name in row["ms"]:
                        ratio = row["ms"][integers.CNN] / row["ms"][name]
                        line = f"  {name:24}{row['ms'][name]:>10.2f} ms{ratio:>8.2f}x as fast"
                        if name in row["percent_of_limit"]:
                            line += f", {row['percent_of_limit'][name]:.0f} % of the limit"
                        print(line, flush=True)
                yield row
