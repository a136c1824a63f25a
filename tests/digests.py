"""A digest of every result of the native kernels: does a change of their code change a bit?

    python -m tests.digests -o before.txt            # before the change
    python -m tests.digests --compare before.txt     # after it: 1 if a row differs

A row is an instruction set, a number of threads, a layer and an op, then a sha256 of its results.
Rows compare on one machine with one version of torch: the inputs are drawn by torch, and the full
filter gradient runs on its convolution.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import adderize.functional  # noqa: F401  (it registers the ops)
from adderize.ops.native import library

ops = torch.ops.adderize
Pair = tuple[int, int]
FORMS = ("fast", "exact", "auto")  # the last one stays
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
RANDOM_LAYERS = 50


class Layer(NamedTuple):
    """Shapes as those of torch's conv2d; the offset is added to inputs and filters."""

    name: str
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    offset: float = 0.0

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


def _square(name: str, batch: int, channels: int, size: int, filters: int, kernel: int) -> Layer:
    weight = filters, channels, kernel, kernel
    padding = kernel // 2, kernel // 2
    return Layer(name, (batch, channels, size, size), weight, padding=padding)


def _grouped(channels: int, per_group: int, filters: int, **geometry: Pair) -> Layer:
    """`per_group` input channels and `filters` filters a group, on an odd image."""
    groups = channels // per_group
    name = f"{groups} groups of {per_group} to {filters} {' '.join(geometry)}".strip()
    weight = groups * filters, per_group, 3, 3
    return Layer(name, (2, channels, 13, 11), weight, groups=groups, **geometry)  # type: ignore[arg-type]


LAYERS = [
    _square("3x3 of 16", 2, 16, 20, 16, 3),
    _square("3x3 of 64", 2, 64, 14, 64, 3),
    _square("3x3 of 67", 1, 67, 9, 67, 3),
    _square("3x3 of 256 to 40", 2, 256, 7, 40, 3),
    _square("3x3 of 512", 1, 512, 4, 96, 3),
    _square("3x3 of one channel", 3, 1, 28, 6, 3),
    _square("3x3 of three channels", 2, 3, 31, 33, 3),
    _square("5x5", 2, 20, 15, 36, 5),
    _square("7x7", 1, 3, 33, 24, 7),
    _square("1x1", 3, 96, 9, 40, 1),
    _square("1x1 of 1024", 2, 1024, 5, 48, 1),
    _square("large image", 1, 16, 90, 16, 3),
    Layer("linear", (37, 400, 1, 1), (84, 400, 1, 1)),
    Layer("long sums", (5, 25088, 1, 1), (3, 25088, 1, 1)),
    Layer("whole image", (21, 6, 5, 5), (20, 6, 5, 5)),
    Layer("single pixel", (1, 5, 1, 1), (7, 5, 3, 3), padding=(1, 1)),
    Layer("narrow", (2, 24, 40, 3), (20, 24, 3, 3), padding=(1, 1)),
    Layer("wide", (1, 12, 3, 100), (17, 12, 3, 3), padding=(1, 1)),
    Layer("1x7", (2, 18, 9, 17), (24, 18, 1, 7), padding=(0, 3)),
    Layer("7x2, strides 1 and 2", (2, 9, 19, 14), (20, 9, 7, 2), (1, 2), (3, 0)),
    Layer("stride 2", (2, 32, 14, 15), (64, 32, 3, 3), (2, 2), (1, 1)),
    Layer("stride 3 of 2x2", (2, 16, 13, 13), (24, 16, 2, 2), (3, 3)),
    Layer("1x1 stride 2", (2, 48, 13, 12), (33, 48, 1, 1), (2, 2)),
    Layer("1x1 padded", (2, 24, 6, 7), (20, 24, 1, 1), padding=(1, 2)),
    Layer("dilation 2", (2, 24, 12, 12), (24, 24, 3, 3), (1, 1), (2, 2), (2, 2)),
    Layer("dilations 2 and 3", (1, 19, 15, 17), (35, 19, 3, 4), (2, 1), (2, 4), (2, 3)),
    Layer("padding beyond the kernel", (2, 12, 6, 5), (33, 12, 3, 3), padding=(5, 4)),
    Layer("9x9 borders", (1, 8, 11, 12), (16, 8, 9, 9), padding=(4, 4)),
    Layer("17x17", (1, 5, 20, 21), (20, 5, 17, 17), padding=(3, 2)),
    Layer("stride beyond the image", (2, 16, 4, 4), (16, 16, 3, 3), (7, 1000000), (1, 1)),
    Layer("4096 bytes a pixel", (1, 1024, 6, 6), (16, 1024, 1, 1)),
    Layer("offset 30", (2, 40, 9, 8), (37, 40, 3, 3), padding=(1, 1), offset=30),
    Layer("offset 1000", (2, 40, 9, 8), (37, 40, 3, 3), (2, 1), (1, 1), offset=1000),
    Layer("offset 1000, 1x1", (3, 64, 6, 6), (24, 64, 1, 1), offset=1000),
    Layer("2 groups of 40", (2, 80, 8, 9), (66, 40, 3, 3), padding=(1, 1), groups=2),
    Layer("2 groups, 1x1", (2, 64, 8, 9), (48, 32, 1, 1), groups=2),
    Layer("2 groups of 512, long sums", (1, 1024, 5, 5), (16, 512, 3, 3), groups=2),
    Layer("depthwise 7x6", (2, 32, 15, 19), (32, 1, 7, 6), (2, 1), (1, 2), (1, 2), 32),
    Layer("depthwise 17x17", (1, 19, 18, 20), (19, 1, 17, 17), padding=(2, 2), groups=19),
    Layer("depthwise, offset", (2, 40, 9, 8), (40, 1, 3, 3), (1, 1), (1, 1), (1, 1), 40, 1000),
    Layer("depthwise of 3 channels", (2, 3, 9, 8), (3, 1, 3, 3), padding=(1, 1), groups=3),
    Layer("large stride, depthwise", (2, 16, 4, 4), (16, 1, 3, 3), (6, 5), (1, 1), (1, 1), 16),
    *(
        _grouped(channels, per_group, filters, **geometry)
        for channels, per_group, filters in (
            *((64, 1, 1), (67, 1, 1), (130, 1, 2), (5, 1, 3), (48, 2, 2), (40, 4, 4), (96, 8, 8)),
            *((9, 3, 3), (48, 3, 3), (60, 5, 5), (72, 6, 6), (14, 7, 9), (24, 2, 4), (32, 4, 1)),
        )
        for geometry in (
            {"padding": (1, 1)},
            {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)},
        )
    ),
]


def _random_layer(index: int) -> Layer:
    pick = random.Random(index)
    groups = pick.choice([1, 1, 1, 1, 2, 3, 5, 8])
    most = 67 if groups == 1 else 18
    channels, filters = pick.randint(1, most), pick.randint(1, most)
    kernel, stride, dilation, padding = (
        (pick.randint(low, high), pick.randint(low, high))
        for low, high in ((1, 7), (1, 3), (1, 3), (0, 3))
    )
    if pick.random() < 0.4:
        kernel, stride, dilation, padding = (3, 3), (1, 1), (1, 1), (1, 1)
    reach = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    height, width = (max(pick.randint(1, 17), reach[i]) for i in (0, 1))
    input = pick.randint(1, 4), groups * channels, height, width
    weight = groups * filters, channels, *kernel
    offset = pick.choice([0.0, 0.0, 1.0, 10.0])
    return Layer(f"random {index}", input, weight, stride, padding, dilation, groups, offset)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _float_rows(layer: Layer, layout: str) -> Iterator[tuple[str, str]]:
    generator = torch.Generator().manual_seed(len(layer.name))

    def draw(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.contiguous(memory_format=LAYOUTS[layout])

    x, w = draw(layer.input) + layer.offset, draw(layer.weight) + layer.offset
    x = x.relu() if len(layer.name) % 2 else x
    arguments = (x, w, *layer.geometry)
    for form in FORMS:
        os.environ["ADDERIZE_FORM"] = form
        output = ops.adder_conv2d(*arguments, "full")
        yield f"forward {form}", _digest(output)
    grad = draw(tuple(output.shape))
    unfinished = w.clone()
    unfinished[-1, 0, 0, 0] = float("inf") if len(layer.name) % 3 else float("nan")
    for gradient in ("full", "sign"):
        backward = (grad, *arguments, gradient)
        yield f"input gradient {gradient}", _digest(ops.adder_conv2d_input_gradient(*backward))
        yield f"weight gradient {gradient}", _digest(ops.adder_conv2d_weight_gradient(*backward))
    arguments = (x, unfinished, *layer.geometry)
    backward = (grad, *arguments, "full")
    yield (
        "not finite",
        _digest(ops.adder_conv2d(*arguments, "full"), ops.adder_conv2d_input_gradient(*backward)),
    )


def _byte_rows(layer: Layer, layout: str) -> Iterator[tuple[str, str]]:
    generator = torch.Generator().manual_seed(len(layer.name))

    def draw(shape: tuple[int, ...]) -> Tensor:
        values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return values.contiguous(memory_format=LAYOUTS[layout])

    x, w = draw(layer.input), draw(layer.weight)
    filters = layer.weight[0]
    scale = torch.randn(filters, generator=generator) * (3 / w[0].numel())
    shift = torch.randn(filters, generator=generator) * 50 + 128

    def forward(residual: Tensor | None, low: float, high: float, float_output: bool) -> Tensor:
        numbers = (0.37, 77, *layer.geometry, low, high, float_output)
        output: Tensor = ops.adder_conv2d_u8(x, w, scale, shift, residual, *numbers)
        return output

    plain = forward(None, 0.0, 255.0, False)
    yield "bytes", _digest(plain)
    residual = draw(tuple(plain.shape)).contiguous(memory_format=torch.channels_last)
    yield "bytes, residual", _digest(forward(residual, 3.0, 99.0, False))
    floats = [forward(each, 0.0, float("inf"), True) for each in (None, residual)]
    yield "bytes to floats", _digest(*floats)

    image = torch.randn(layer.input, generator=generator)
    image = image.contiguous(memory_format=LAYOUTS[layout])
    yield "to bytes", _digest(ops.to_bytes(image, 0.02, 128, 255))
    kernel = [min(size, 3) for size in layer.weight[2:]]
    window = (kernel, list(layer.stride), [size // 2 for size in kernel], [1, 1])
    pooled = [ops.max_pool2d_u8(x, *window, ceil_mode) for ceil_mode in (False, True)]
    yield "max pooling", _digest(*pooled)


def rows() -> Iterator[tuple[str, str]]:
    """Name and digest of every result, one after another; leaves threads and instruction set."""
    offered, before = library.info(), torch.get_num_threads()
    layers = LAYERS + [_random_layer(index) for index in range(RANDOM_LAYERS)]
    for cpu in offered["cpus"]:  # type: ignore[attr-defined]
        library.set_cpu(cpu)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for layer in layers:
                for layout in LAYOUTS:
                    for kind in (_float_rows, _byte_rows):
                        for op, digest in kind(layer, layout):
                            yield f"{cpu}, {threads} threads, {layer.name}, {layout}, {op}", digest
    torch.set_num_threads(before)
    library.set_cpu(str(offered["cpu"]))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="write the rows to a file")
    parser.add_argument("--compare", type=Path, help="rows of a run before")
    options = parser.parse_args()
    found = dict(rows())
    lines = [f"{digest}  {name}" for name, digest in found.items()]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")
    if not options.compare:
        if not options.output:
            print("\n".join(lines))
        return 0
    earlier = (line.split("  ", 1) for line in options.compare.read_text().splitlines())
    expected = {name: digest for digest, name in earlier}
    unlike = [name for name in expected | found if expected.get(name) != found.get(name)]
    print("\n".join(unlike))
    print(f"{len(unlike)} of {len(expected | found)} rows differ", file=sys.stderr)
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(_main())
