"""`adderize bench gpu-report`: all that is measured on a GPU, in one file."""

from __future__ import annotations

import argparse
from typing import Any

from adderize.bench.gpu_report import write_report
from adderize.cli.shared_options import duration, output_file
from adderize.tables import Table

HELP = "limits, layers, training steps and a CIFAR epoch of a GPU, in one file"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=output_file, required=True, metavar="FILE",
        help="JSON, written anew with each result",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cuda",
        help="a CUDA device (cuda), or cpu: a few tiny layers, to see whether everything runs",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=duration, default=240.0, metavar="SECONDS",
        help="after which no part starts; what is left out is named (240)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 where a part failed."""
    report = write_report(arguments.output, arguments.device, arguments.budget)
    print(_steps(report["steps"]).text())
    for row in report["cifar"]:
        print(f"CIFAR epoch, {row['name']}: {row['seconds_per_epoch']:.2f} s")
    for name, reason in report["failed"].items():
        print(f"failed: {name}: {reason}")
    if report["left_out"]:
        print(f"left out for want of time: {'; '.join(report['left_out'])}")
    print(f"all figures: {arguments.output}")
    return 1 if report["failed"] else 0


def _steps(rows: list[dict[str, Any]]) -> Table:
    phases = list(rows[0]["adder_phases_ms"]) if rows else []
    lines = [
        [row["arch"], row["precision"]]
        + [f"{row[name]:.1f}" for name in ("cnn_ms", "adder_ms")]
        + [f"{row['ratio']:.2f}x", *(f"{row['adder_phases_ms'][name]:.1f}" for name in phases)]
        for row in rows
    ]
    header = ["step, ms", "precision", "cnn", "adder", "ratio", *phases]
    return Table(header, lines, texts=2)
