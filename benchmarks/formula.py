"""The adder's kernels beside its formula in plain PyTorch, forward and backward of single layers.

    python -m benchmarks.formula [--threads N] [--rounds N]

As in the AdderNet authors' published code, but written anew: patches come from `unfold`, and the
differences of every filter and patch are one tensor, which is summed. The last column is its size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.bench.layers import LAYERS, Layer
from adderize.bench.timing import side_by_side
from adderize.functional import adder_conv2d
from adderize.tables import Table

# Those of a ResNet-20, at batch 128.
MEASURED = LAYERS[:3]


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, filters: Tensor) -> Tensor:
        """(taps, positions) and (filters, taps) -> (filters, positions)."""
        ctx.save_for_backward(patches, filters)
        return -(filters[:, :, None] - patches).abs().sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        patches, filters = ctx.saved_tensors
        grad = grads[0][:, None]
        of_filters = ((patches - filters[:, :, None]) * grad).sum(2)
        of_patches = ((filters[:, :, None] - patches).clamp(-1, 1) * grad).sum(0)
        return of_patches, of_filters


def by_formula(x: Tensor, w: Tensor, padding: int) -> Tensor:
    """`adder_conv2d` of stride 1 without groups."""
    patches = F.unfold(x, w.shape[-1], padding=padding)
    outputs = _Distances.apply(patches.transpose(0, 1).flatten(1), w.flatten(1))
    height = x.shape[2] + 2 * padding - w.shape[2] + 1
    images: Tensor = outputs.view(w.shape[0], x.shape[0], height, -1).transpose(0, 1)
    return images


def measure(layers: tuple[Layer, ...], **timing: Any) -> Iterator[list[str]]:
    """Rows of layer, milliseconds of the formula and of the kernels, their ratio, gigabytes."""
    for layer in layers:
        padding = layer.geometry.padding[0]
        x, w = (
            torch.randn(shape, requires_grad=True)
            for shape in (layer.input_shape, layer.weight_shape)
        )
        grad = torch.randn(layer.output_shape)
        calls: dict[str, Callable[[], object]] = {
            "formula": partial(_step, partial(by_formula, padding=padding), x, w, grad),
            "kernels": partial(_step, partial(adder_conv2d, padding=padding), x, w, grad),
        }
        best = side_by_side(calls, **timing)
        formula, kernels = best["formula"], best["kernels"]
        yield [
            layer.name, f"{formula * 1e3:.0f}", f"{kernels * 1e3:.1f}", f"{formula / kernels:.0f}",
            f"{layer.pairs * 4 / 1e9:.2f}",
        ]  # fmt: skip


def _step(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, grad: Tensor) -> object:
    return torch.autograd.grad(layer(x, w), (x, w), grad)


def main(argv: list[str] | None = None, layers: tuple[Layer, ...] = MEASURED) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="best of N (3)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    header = ["layer", "formula, ms", "kernels, ms", "times faster", "differences, GB"]
    print(Table(header, list(measure(layers, rounds=arguments.rounds)), texts=1).text())


if __name__ == "__main__":
    main()
