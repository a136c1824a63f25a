"""The part of the features that correlations are measured on."""

from __future__ import annotations

import pytest
import torch

from adderize.transfer.features import Features


@pytest.mark.parametrize(
    ("count", "expected"),
    [(4, [0, 2, 4, 6]), (6, [0, 1, 2, 4, 5, 6]), (8, range(8)), (20, range(8))],
)
def test_few_features_lie_all_over_them(count: int, expected: list[int]) -> None:
    numbers = torch.arange(8.0).view(8, 1, 1, 1)
    few = Features(numbers, -numbers).few(count)
    assert few.inputs.flatten().tolist() == list(expected)
    assert few.targets.equal(-few.inputs)
