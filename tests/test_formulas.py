"""Formulas against hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import formulas
from adderize.formulas import Operations


def test_operations_add_up_and_scale() -> None:
    total = 3 * Operations(multiplications=1, xnors=2) + Operations(additions=4, comparisons=5)
    assert total == Operations(multiplications=3, additions=4, xnors=6, comparisons=5)
    assert total.flops == 7


def test_lenet5_first_layer_by_hand() -> None:
    # 6 filters of 5x5 on a 32x32 image: 28 * 28 positions, 25 taps each.
    shapes = (1, 1, 32, 32), (6, 1, 5, 5), (1, 6, 28, 28)
    assert formulas.convolution(*shapes) == Operations(multiplications=117_600, additions=117_600)
    assert formulas.adder(*shapes) == Operations(additions=235_200)
    assert formulas.xnor(*shapes) == Operations(
        multiplications=6 * 28 * 28, additions=117_600, xnors=117_600, comparisons=32 * 32
    )


def naive_pairs(layer: nn.Module, input: torch.Tensor) -> int:
    """How many (value, tap) products the layer sums, found by running it on ones."""
    ones = {name: torch.ones_like(value) for name, value in layer.named_parameters()}
    return int(torch.func.functional_call(layer, ones, torch.ones_like(input)).sum())


@pytest.mark.parametrize(
    "layer, size",
    [
        (nn.Conv2d(6, 8, 3, bias=False), (2, 6, 7, 9)),
        (nn.Conv2d(6, 8, (3, 1), stride=2, groups=2, bias=False), (1, 6, 8, 8)),
        (nn.Conv2d(6, 12, 3, dilation=2, groups=6, bias=False), (3, 6, 9, 7)),
        (nn.Conv1d(4, 6, 3, bias=False), (2, 4, 11)),
        (nn.Conv3d(2, 4, 3, bias=False), (1, 2, 5, 6, 7)),
        (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, bias=False), (2, 6, 5, 5)),
    ],
)
def test_pairs_of_convolutions_against_the_layer_itself(
    layer: nn.Module, size: tuple[int, ...]
) -> None:
    input, transposed = torch.randn(size), isinstance(layer, nn.ConvTranspose2d)
    weight = layer.get_parameter("weight").shape
    pairs = formulas.convolution_pairs(size, weight, layer(input).shape, transposed)
    assert pairs == naive_pairs(layer, input)


def test_adaptive_pooling_reads_its_overlapping_windows() -> None:
    pool = nn.AdaptiveAvgPool2d((3, 5))
    input = torch.ones(2, 4, 7, 11, requires_grad=True)
    output = pool(input)
    # Every window of an average has gradients 1 / size: their number is the window's size.
    sizes = [
        int((torch.autograd.grad(output[0, 0, i, j], input, retain_graph=True)[0] != 0).sum())
        for i in range(3)
        for j in range(5)
    ]
    assert formulas.adaptive_terms(input.shape, output.shape, 2) == 2 * 4 * sum(sizes)


def test_attention_is_two_products_a_scale_and_a_softmax() -> None:
    # 2 heads, 3 queries, 5 keys of width 4, values of width 6.
    query, key, value = (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)
    logits, mixed = 2 * 3 * 5, 2 * 3 * 6
    assert formulas.attention(query, key, value) == Operations(
        multiplications=logits * 4 + mixed * 5 + 2 * 4 * (3 + 5),
        additions=logits * 4 + 2 * logits + mixed * 5,
        comparisons=logits,
        other=2 * logits,
    )


def test_norms_by_hand() -> None:
    assert formulas.scale_and_shift((2, 3, 4, 4)) == Operations(multiplications=96, additions=96)
    # LayerNorm(8) with affine parameters on 5 rows.
    assert formulas.norm_with_statistics((5, 8), 5, weight=True, bias=True) == Operations(
        multiplications=3 * 40 + 10, additions=4 * 40 + 5, other=5
    )
