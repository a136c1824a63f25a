"""Compilers, and networks that are built and run as programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adderize.errors import AdderizeError
from adderize.integer.program import Program

SOURCES = resources.files("adderize.export.c") / "sources"
LAYERS = ("adderize_layers.h", "adderize_layers.c")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion")


# Seconds: a program that reads and writes wrongly waits for ever.
TIMEOUT = 3600


def host_compiler() -> str | None:
    """The C compiler of this machine: the environment's CC, else cc, gcc or clang."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def run_tool(
    command: Sequence[str | Path], *, images: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """
    Raises:
        AdderizeError: the command failed; it holds what the command said.
    """
    done = subprocess.run(
        [str(word) for word in command], input=images, capture_output=True, timeout=TIMEOUT
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise AdderizeError(f"{' '.join(map(str, command))} failed ({done.returncode}): {said}")
    return done


def stream_options(program: Program, name: str) -> list[str]:
    """The network's names and sizes for the programs that run it on images of a stream."""
    input, output = program.slots[program.input], program.slots[program.output]
    return [f"-DRUN={name}_run", f"-DINPUT_SIZE={input.numel}", f"-DOUTPUT_SIZE={output.numel}"]


def network_sources(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.c", folder / f"{name}_filters.c", folder / "adderize_layers.c"]


def build_for_host(
    program: Program, folder: Path, name: str, executable: Path,
    *, compiler: str, flags: Sequence[str] = ("-O2",),
) -> Path:  # fmt: skip
    """A program that runs an exported network on images of a stream.

    Raises:
        AdderizeError: the compiler failed.
    """
    with resources.as_file(SOURCES / "stream_host.c") as stream:
        sources = [*network_sources(folder, name), stream]
        options = stream_options(program, name)
        run_tool([compiler, *WARNINGS, *flags, *options, *sources, "-o", executable])
    return executable


def as_pixels(images: Tensor) -> Tensor:
    """Images as exported networks take them: (N, H, W, C), uint8."""
    return images.permute(0, 2, 3, 1).contiguous()


def as_logits(output: bytes, count: int) -> Tensor:
    """
    Raises:
        AdderizeError: the output does not hold the logits of all images.
    """
    logits = np.frombuffer(output, "<i4").astype(np.int32)
    if bool(len(logits)) != bool(count) or len(logits) % max(count, 1):
        raise AdderizeError(f"the program wrote {len(output)} bytes for {count} images")
    return torch.from_numpy(logits.reshape(count, len(logits) // max(count, 1)))


def run_on_host(executable: Path, images: Tensor) -> Tensor:
    """The logits of images, int32 (N, outputs)."""
    done = run_tool([executable], images=as_pixels(images).numpy().tobytes())
    return as_logits(done.stdout, len(images))
