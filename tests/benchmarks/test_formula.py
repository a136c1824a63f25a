"""The formula in plain PyTorch, which the kernels are timed beside."""

from __future__ import annotations

import pytest
import torch

from adderize.bench.layers import Layer
from adderize.ops.geometry import Geometry
from benchmarks import formula
from tests import oracle


@pytest.mark.parametrize(("size", "kernel", "padding"), [(7, 3, 1), (6, 3, 0), (5, 1, 0)])
def test_it_is_the_formula(size: int, kernel: int, padding: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    output = formula.by_formula(x, w, padding)
    grad = torch.randn_like(output)
    expected = oracle.adder_conv2d(x.detach(), w.detach(), grad, padding=(padding, padding))
    found = (output, *torch.autograd.grad(output, (x, w), grad))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_table_names_layers_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    layer = Layer("small", 2, 3, 8, 4, 3, Geometry.of(padding=1))
    try:
        formula.main(["--rounds", "1"], (layer,))
    finally:
        torch.set_num_threads(threads)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "layer" and row.split()[0] == "small"
    assert float(row.split()[-1]) == round(layer.pairs * 4 / 1e9, 2)


def test_the_measured_layers_are_ones_that_it_computes() -> None:
    for layer in formula.MEASURED:
        assert layer.geometry == Geometry.of(padding=layer.kernel // 2)
