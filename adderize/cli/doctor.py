"""`adderize doctor`: which backend serves which device, and why; timed tiles of a GPU's kernels."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import torch

from adderize import __version__
from adderize.bench.gpu import PRECISIONS
from adderize.bench.tuning import kept, tune
from adderize.cli.messages import note
from adderize.cli.shared_options import add_input, positive
from adderize.errors import AdderizeError
from adderize.models.by_name import build, input_size
from adderize.ops import native
from adderize.ops.choice import choose
from adderize.tables import json_text

HELP = "which backend serves which device, and why; times the tiles of a GPU's kernels"
EXAMPLES = (
    "adderize doctor",
    "adderize doctor --json",
    "adderize doctor --tune resnet18 --batch 128 --precision bf16",
)
_NATIVE = {
    "path": "library",
    "abi_version": "ABI version",
    "cpu": "instruction set",
    "cpus": "instruction sets of this machine",
    "openmp": "OpenMP",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    group = parser.add_argument_group("tiles of a GPU's kernels")
    group.add_argument(
        "--tune", metavar="ARCH",
        help="time them in a training step of this network, and keep the fastest in a file "
        "(default: a rule chooses, nothing is timed)",
    )  # fmt: skip
    group.add_argument("--batch", type=positive, default=128, metavar="N", help="images (128)")
    add_input(group)
    group.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["fp32"],
        help="in which the training runs (fp32)",
    )  # fmt: skip
    group.add_argument("--device", default="cuda", help="a CUDA device (cuda)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.tune:
        _tune(arguments)
    report = diagnose()
    if arguments.json:
        print(json_text(report))
    else:
        _print(report)
    return 0 if all(row["backend"] for row in report["devices"]) else 1


def _tune(arguments: argparse.Namespace) -> None:
    arch, shape = arguments.tune, arguments.input
    shape = shape or input_size(arch, build(arch))
    tuned = tune(arch, shape, arguments.batch, arguments.precision, arguments.device)
    note(f"timed the tiles of {tuned.layers} layers' kernels")


def diagnose() -> dict[str, Any]:
    """Versions, one row a device, the native library and the OpenMP runtimes of this process."""
    return {
        "adderize": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "devices": [_device(name) for name in _device_types()],
        "native": native.info(),
        "openmp": _openmp_runtimes(),
        "tiles": _tiles(),
    }


def _device_types() -> list[str]:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return ["cpu", *([accelerator.type] if accelerator else [])]


def _device(device_type: str) -> dict[str, str | None]:
    try:
        choice = choose(device_type)
    except AdderizeError as error:
        return {"device": device_type, "backend": None, "reason": str(error)}
    return {"device": device_type, "backend": choice.name, "reason": choice.reason}


def _tiles() -> dict[str, Any] | None:
    """The file of timed tiles for the current GPU; None where Triton serves none."""
    try:
        file, layers = kept()
    except AdderizeError:
        return None
    return {"file": str(file), "layers": layers}


def _openmp_runtimes() -> list[str] | None:
    """Their files; None where threadpoolctl, which finds them, is not installed."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return sorted(pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp")


def _print(report: dict[str, Any]) -> None:
    versions = ("adderize", "torch", "python", "machine", "threads")
    for name in versions:
        print(f"{name:10} {report[name]}")
    for row in report["devices"]:
        print(f"{row['device']:10} {row['backend'] or 'none'}: {row['reason']}")
    if len(report["devices"]) == 1:
        print(f"{'gpu':10} torch finds none")
    for name, label in _NATIVE.items():
        if name in report["native"]:
            value = report["native"][name]
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{'native':10} {label}: {text}")
    if tiles := report["tiles"]:
        timed = f"{tiles['layers']} timed layers in {tiles['file']}; a rule chooses for others"
        print(f"{'tiles':10} {timed}")
    runtimes = report["openmp"]
    if runtimes is None:
        runtimes = ["unknown: threadpoolctl lists them (pip install 'adderize[doctor]')"]
    for path in runtimes:
        print(f"{'openmp':10} {path}")
    if len(runtimes) > 1:
        print("warning: several OpenMP runtimes in one process compete for the cores")
